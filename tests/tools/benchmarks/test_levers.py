"""Every lever that is undone leaves the same function, written otherwise."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

from parity import rel_f
from t2t_common.io import cli
from t2t_jax import create_model
from t2t_jax.ops import softmax
from t2t_jax.ops.platform import ONE_DEVICE, batch_on, traced_for
from t2t_jax.state import merge_model, split_model
from tools.benchmarks import levers
from tools.benchmarks.levers import LEVERS

IN_BFLOAT16 = "gradients of the scores in bfloat16"
"""In float32 it does nothing."""


@pytest.mark.parametrize("name", [name for name, lever in LEVERS.items() if lever.patches])
def test_the_program_is_another_and_its_result_is_not(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(softmax, "KERNEL_TOKENS", 512)
    monkeypatch.setattr(splash, "make_splash_mha", functools.partial(splash.make_splash_mha, interpret=True))
    lever = LEVERS[name]
    dtype = jnp.bfloat16 if name == IN_BFLOAT16 else jnp.float32
    model: Any = create_model(
        "t2t_vit_micro", img_size=112, tokens_type=lever.tokens_types[-1], dtype=dtype, rngs=nnx.Rngs(0)
    )
    model.eval()
    graphdef, params, buffers = split_model(model)
    images = np.random.default_rng(0).standard_normal((1, 112, 112, 3), dtype=np.float32)

    def program() -> Any:  # a new function each time: JAX keeps what it traced
        return lambda params: merge_model(graphdef, {**params, **buffers})(images).astype(jnp.float32)

    with traced_for("tpu"), batch_on(ONE_DEVICE):
        logits, jaxpr = jax.jit(program())(params), str(jax.make_jaxpr(program())(params))
        with lever.undo():
            undone, other = jax.jit(program())(params), str(jax.make_jaxpr(program())(params))
        assert other != jaxpr
        assert rel_f(np.asarray(undone), np.asarray(logits)) < (2e-2 if dtype == jnp.bfloat16 else 1e-5)
        assert str(jax.make_jaxpr(program())(params)) == jaxpr


def test_without_libtpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("t2t_jax.aot.topology.has_libtpu", lambda: False)
    assert cli.run(levers.main, ["--model", "t2t_vit_micro"]) == cli.MISUSED
    assert 'pip install -e ".[tpu]"' in capsys.readouterr().err
