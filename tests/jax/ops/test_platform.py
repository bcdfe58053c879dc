"""Whatever platform a model is traced for, it is the same function."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType

from t2t_jax import create_model
from t2t_jax.ops.platform import ONE_DEVICE, batch_on, on_cpu, takes_tpu_kernels, traced_for, traced_on
from t2t_jax.parallel.mesh import AXES
from t2t_jax.state import merge_model, split_model
from tests.support.families import FAMILIES
from tests.support.golden import rel_f
from tests.support.jax_models import normal


def test_what_was_traced_for_one_platform_is_not_taken_for_another():
    found = []

    @jax.jit
    def program() -> jax.Array:
        found.append(on_cpu())
        return jnp.zeros(())

    program()
    with traced_for("tpu"):
        program()
        assert not on_cpu()
        with traced_for("cpu"):
            assert on_cpu()
    program()
    assert found == [True, False]


def test_a_step_knows_which_devices_hold_its_batch():
    found = []

    def program() -> jax.Array:
        found.append((batch_on.value, takes_tpu_kernels()))
        return jnp.zeros(())

    mesh = AbstractMesh((2, 2), AXES, (AxisType.Auto,) * 2)
    for trace in (program, traced_on(None, program), traced_on(mesh, program)):
        with traced_for("tpu"):
            jax.eval_shape(trace)
    jax.eval_shape(traced_on(mesh, program))
    assert found == [(None, False), (ONE_DEVICE, True), (mesh, True), (mesh, False)]
    assert batch_on.value is None


@pytest.mark.parametrize("family", ["performer", "transformer", "vit"])
def test_logits_and_gradients_on_every_platform(x64: None, family: str, monkeypatch: pytest.MonkeyPatch):
    """Two images of uneven height and width; scores of 30 queries at a time."""
    monkeypatch.setattr("t2t_jax.ops.softmax.ROWS", 30)
    name, arguments = FAMILIES[family]
    model: Any = create_model(name, **arguments, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    model.eval()
    graphdef, params, buffers = split_model(model)
    images = normal(2, *model.img_size, 3, dtype=np.float64)

    def forward(params: Any, images: jax.Array) -> jax.Array:
        return merge_model(graphdef, {**params, **buffers})(images)

    def run(params: Any, images: jax.Array) -> Any:
        logits, backward = jax.vjp(forward, params, images)
        return logits, backward(logits)

    here, text = jax.jit(run)(params, images), str(jax.make_jaxpr(run)(params, images))
    with traced_for("tpu"):
        there, other = jax.jit(run)(params, images), str(jax.make_jaxpr(run)(params, images))
    assert text != other
    for mine, theirs in zip(jax.tree.leaves(here), jax.tree.leaves(there), strict=True):
        assert rel_f(mine, theirs) <= 1e-13
