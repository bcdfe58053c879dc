"""The T2T module's transformer layer against its formula."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from t2t_jax.models.token_transformer import Attention, TokenTransformer
from tests.support.golden import rel_f
from tests.support.jax_models import normal, primitive_dtypes, variables


@pytest.mark.parametrize("options", [{}, {"qk_scale": 0.7}])
def test_attention_by_loops(x64: None, options: dict[str, float]):
    layer = Attention(10, 6, param_dtype=jnp.float64, rngs=nnx.Rngs(0), **options)
    layer.eval()
    for variable in variables(layer).values():
        variable.set_value(normal(*variable.shape, dtype=np.float64))
    w = {name: np.asarray(value[...]) for name, value in variables(layer).items()}
    x = normal(2, 5, 10, dtype=np.float64)
    scale = options.get("qk_scale", 10**-0.5)  # of the width that comes in
    for b in range(2):
        q, k, v = np.split(np.asarray(x[b]) @ w["qkv.kernel"], 3, axis=1)
        scores = np.exp(q * scale @ k.T)
        y = scores / scores.sum(axis=1, keepdims=True) @ v
        assert rel_f(layer(x)[b], v + y @ w["proj.kernel"] + w["proj.bias"]) <= 1e-13


def test_qkv_has_no_bias_and_the_scale_is_of_the_input():
    layer = TokenTransformer(147, 64, rngs=nnx.Rngs(0))
    assert layer.attn.qkv.bias is None
    assert layer.attn.scale == 147**-0.5


def test_the_skip_connection_is_v():
    layer = Attention(10, 6, rngs=nnx.Rngs(0))
    layer.eval()
    layer.proj.kernel[...] = jnp.zeros_like(layer.proj.kernel[...])
    x = normal(2, 5, 10)
    np.testing.assert_array_equal(layer(x), layer.qkv(x)[..., 12:])


def test_layer_is_attention_then_a_residual_mlp():
    layer = TokenTransformer(10, 6, rngs=nnx.Rngs(0))
    layer.eval()
    x = normal(2, 5, 10)
    y = layer.attn(layer.norm1(x))
    np.testing.assert_array_equal(layer(x), y + layer.mlp(layer.norm2(y)))
    assert layer.mlp.fc1.out_features == 6


def test_softmax_stays_in_float32_under_bfloat16():
    layer = TokenTransformer(10, 6, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    layer.eval()
    x = normal(2, 5, 10, dtype=jnp.bfloat16)
    assert primitive_dtypes(layer, x)["exp"] == {"float32"}
    assert layer(x).dtype == jnp.bfloat16
