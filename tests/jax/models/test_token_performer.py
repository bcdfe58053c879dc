"""The performer layer: its formula, its random features, its precision, its dropout."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from t2t_jax.models.layers import Buffer
from t2t_jax.models.token_performer import TokenPerformer
from tests.support.golden import rel_f
from tests.support.jax_models import apply, normal, primitive_dtypes, variables


def performer(dim: int = 10, in_dim: int = 6, *, training: bool = False, **options: Any) -> TokenPerformer:
    layer = TokenPerformer(dim, in_dim, rngs=nnx.Rngs(0), **options)
    layer.train() if training else layer.eval()
    return layer


def features(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """exp(w x - |x|^2 / 2) / sqrt(M), row by row."""
    return np.stack([np.exp(w @ row - row @ row / 2) / np.sqrt(len(w)) for row in x])


def test_single_attention_by_loops(x64: None):
    layer = performer(param_dtype=jnp.float64)
    for name, variable in variables(layer).items():
        if name != "w":
            variable.set_value(0.3 * normal(*variable.shape, dtype=np.float64))
    w = {name: np.asarray(value[...]) for name, value in variables(layer).items()}
    x = normal(2, 5, 10, dtype=np.float64)
    for b in range(2):
        kqv = np.asarray(x[b]) @ w["kqv.kernel"] + w["kqv.bias"]
        k, q, v = kqv[:, :6], kqv[:, 6:12], kqv[:, 12:]  # in this order
        kp, qp = features(k, w["w"]), features(q, w["w"])
        y = np.empty_like(v)
        for n in range(5):
            weights = kp @ qp[n]
            y[n] = weights @ v / (weights.sum() + 1e-8)
        expected = v + y @ w["proj.kernel"] + w["proj.bias"]
        assert rel_f(layer.single_attn(x, None)[b], expected) <= 1e-13


def test_w_has_orthogonal_rows_of_norm_sqrt_m():
    layer = performer(147, 64)
    w = np.asarray(layer.w[...], np.float64)
    assert w.shape == (32, 64)
    assert rel_f(w @ w.T, 32 * np.eye(32)) < 1e-6
    other = TokenPerformer(147, 64, rngs=nnx.Rngs(1))
    assert not np.array_equal(other.w[...], w)


def test_w_is_frozen_but_saved():
    layer = performer()
    assert isinstance(layer.w, Buffer)
    assert not isinstance(layer.w, nnx.Param)
    assert "w" in variables(layer)


def test_kqv_has_a_bias():
    assert performer().kqv.bias is not None


def test_the_skip_connection_is_v():
    layer = performer()
    layer.proj.kernel[...] = jnp.zeros_like(layer.proj.kernel[...])
    x = normal(2, 5, 10)
    np.testing.assert_array_equal(layer.single_attn(x, None), layer.kqv(x)[..., 12:])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_exponentials_and_sums_stay_in_float32(dtype: Any):
    layer = performer(dtype=dtype)
    layer.kqv.kernel[...] = 1.5 * normal(10, 18)  # |k|^2 / 2 well above 20: exp(-20) is zero in float16
    x = normal(2, 50, 10)
    kqv = np.asarray(layer.kqv(layer.norm1(x)), np.float32)
    assert (kqv[..., :6] ** 2).sum(axis=-1).max() / 2 > 20
    dtypes = primitive_dtypes(lambda x: layer.single_attn(x, None), x.astype(dtype))
    assert dtypes["exp"] == dtypes["reduce_sum"] == dtypes["div"] == {"float32"}
    low = layer(x.astype(dtype))
    assert low.dtype == dtype
    for module in (layer.kqv, layer.proj, layer.norm1, layer.norm2, layer.mlp[0], layer.mlp[2]):
        module.dtype = None
    assert rel_f(low.astype(jnp.float32), layer(x)) < 0.1


def test_float64_stays_float64(x64: None):
    layer = performer(param_dtype=jnp.float64)
    dtypes = primitive_dtypes(layer, normal(1, 5, 10, dtype=np.float64))
    assert dtypes["exp"] == dtypes["dot_general"] == {"float64"}
    assert "float32" not in set().union(*dtypes.values())


def test_dropout_is_a_tenth_unless_told_otherwise():
    layer = performer(training=True)
    assert (layer.dp.rate, layer.mlp[3].rate) == (0.1, 0.1)
    x = normal(2, 50, 10)
    assert not np.array_equal(apply(layer, x, key=0), apply(layer, x, key=1))
    np.testing.assert_array_equal(apply(layer, x, key=0), apply(layer, x, key=0))
    layer = performer(training=True, drop=0.0)
    np.testing.assert_array_equal(apply(layer, x, key=0), apply(layer, x, key=1))
