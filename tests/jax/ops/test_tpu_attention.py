"""The TPU's attention kernel, interpreted on a CPU, is attention."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.sharding import AbstractMesh, AxisType

from t2t_jax.ops import softmax, tpu_attention
from t2t_jax.ops.platform import ONE_DEVICE, batch_on, traced_for
from t2t_jax.ops.tpu_attention import BLOCKS, block_size
from t2t_jax.parallel.mesh import AXES
from tests.support.golden import rel_f
from tests.support.jax_models import equations, normal

TOKENS = 300
"""More than a block, padded to three."""
FURTHER = 3.0
"""How many times as far as the plain form the kernel may be from float64: the gate of `parity`, its `f32_ratio`."""


@pytest.fixture(autouse=True)
def kernels_for_few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(softmax, "KERNEL_TOKENS", 100)
    monkeypatch.setattr(tpu_attention, "BLOCKS", (128, 256))
    monkeypatch.setattr(splash, "make_splash_mha", functools.partial(splash.make_splash_mha, interpret=True))


def primitives(dtype: Any = jnp.float32, tokens: int = TOKENS) -> set[str]:
    x = jax.ShapeDtypeStruct((2, tokens, 8), dtype)
    attend = lambda *qkv: softmax.one_head_attention(*qkv)  # noqa: E731 - a new one each time: JAX keeps what it traced
    return {equation.primitive.name for equation in equations(jax.make_jaxpr(attend)(x, x, x).jaxpr)}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_numbers_and_gradients(x64: None, dtype: Any):
    """Against float64, beside the form that the compiler makes of the formula."""
    q, k, v, grad = (normal(2, TOKENS, 8, seed=seed).astype(dtype) for seed in range(4))

    def run(attend: Callable[..., jax.Array], dtype: Any) -> list[np.ndarray]:
        found, backward = jax.vjp(attend, *(x.astype(dtype) for x in (q, k, v)))
        return [np.asarray(x, np.float64) for x in (found, *backward(grad.astype(dtype)))]

    with traced_for("tpu"):
        plain = run(lambda *qkv: softmax.attention_by_rows(*qkv), dtype)
        with batch_on(ONE_DEVICE):
            kernel = run(lambda *qkv: softmax.one_head_attention(*qkv), dtype)
    exact = run(lambda *qkv: softmax.attention_by_rows(*qkv), jnp.float64)
    assert any((x != y).any() for x, y in zip(kernel, plain, strict=True))
    for mine, theirs, truth in zip(kernel, plain, exact, strict=True):
        assert rel_f(mine, truth) <= FURTHER * rel_f(theirs, truth)


def test_only_in_a_step_for_tpus_and_of_many_tokens(x64: None):
    assert "pallas_call" not in primitives()
    with batch_on(ONE_DEVICE):
        assert "pallas_call" not in primitives()
    with traced_for("tpu"):
        assert "pallas_call" not in primitives()  # whose devices nobody knows
    with traced_for("tpu"), batch_on(ONE_DEVICE):
        assert "pallas_call" in primitives()
        assert "pallas_call" not in primitives(jnp.float64)
        assert "pallas_call" not in primitives(tokens=100)


def test_devices_compute_their_own_part():
    x = jax.ShapeDtypeStruct((8, TOKENS, 8), jnp.float32)
    with traced_for("tpu"), batch_on(AbstractMesh((2, 2), AXES, (AxisType.Auto,) * 2)):
        program = jax.make_jaxpr(softmax.one_head_attention)(x, x, x).jaxpr
    (kernel,) = (e for e in equations(program) if e.primitive.name == "pallas_call")
    assert (2, 384, 8) in {v.aval.shape for v in kernel.outvars}


def test_a_mesh_finds_what_one_device_finds():
    program = """
import functools, jax, numpy as np
jax.config.update("jax_num_cpu_devices", 4)
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.sharding import NamedSharding
from t2t_jax.ops import softmax
from t2t_jax.parallel.mesh import BATCH, make_mesh
from t2t_jax.ops.platform import traced_for, traced_on
mesh = make_mesh("data=2,fsdp=2")
qkv = [np.random.default_rng(seed).standard_normal((4, 140, 8), dtype=np.float32) for seed in range(3)]
def gradients(*qkv):
    found, backward = jax.vjp(softmax.one_head_attention, *qkv)
    return found, *backward(found)
softmax.KERNEL_TOKENS = 100
splash.make_splash_mha = functools.partial(splash.make_splash_mha, interpret=True)
with traced_for("tpu"):
    parts = [jax.device_put(x, NamedSharding(mesh, BATCH)) for x in qkv]
    split = jax.jit(traced_on(mesh, gradients))(*parts)
    whole = jax.jit(traced_on(None, gradients))(*qkv)
for x, y in zip(split, whole, strict=True):
    assert x.sharding.spec == BATCH
    assert np.linalg.norm(x - y) <= 1e-6 * np.linalg.norm(y)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("tokens", "block"), [(3136, 640), (9216, 1024), (12544, 896)])
def test_blocks_of_the_models(tokens: int, block: int, monkeypatch: pytest.MonkeyPatch):
    """Images of 224, 384 and 448 pixels."""
    monkeypatch.setattr(tpu_attention, "BLOCKS", BLOCKS)
    assert block_size(tokens) == block
    assert block % 128 == 0
    assert -tokens % block <= 0.03 * tokens
