"""The T2T module's transformer layer against its formula."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from t2t_jax import token_transformer
from t2t_jax.compile import _equations, matrix_products
from t2t_jax.token_transformer import Attention, TokenTransformer
from tests.golden import rel_f
from tests.jax.helpers import normal, primitive_dtypes, variables


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


@pytest.mark.parametrize("tokens", [5, 6, 7, 9])
def test_attention_by_rows_is_attention(x64: None, tokens: int, monkeypatch: pytest.MonkeyPatch):
    """Some queries at a time or all at once, whether their number divides or not: numbers and gradients."""
    q, k, v = (normal(2, tokens, 4, seed=seed, dtype=np.float64) for seed in range(3))
    whole, whole_back = jax.vjp(lambda q, k, v: jax.nn.softmax(q @ k.swapaxes(1, 2)) @ v, q, k, v)
    monkeypatch.setattr(token_transformer, "ROWS", 3)
    parts, parts_back = jax.vjp(token_transformer.attention_by_rows, q, k, v)
    assert rel_f(parts, whole) <= 1e-14
    for mine, theirs in zip(parts_back(whole), whole_back(whole), strict=True):
        assert rel_f(mine, theirs) <= 1e-13


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_scores_are_held_in_parts_and_computed_once_more(dtype: Any):
    """Seven products in training, five of them backward, none larger than a part's scores."""
    x = jax.ShapeDtypeStruct((1, 3136, 64), dtype)
    loss = lambda q, k, v: token_transformer.attention_by_rows(q, k, v).astype(jnp.float32).sum()  # noqa: E731
    program = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(x, x, x).jaxpr
    assert matrix_products(program).flops == 7 * 2 * 3136 * 3136 * 64
    largest = max(v.aval.size for equation, _ in _equations(program) for v in equation.outvars)
    assert largest == 448 * 3136


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
