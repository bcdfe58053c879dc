"""The backbone's pieces against their formulas, written with loops."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import t2t_torch.models.transformer_block
from t2t_jax.models.layers import Dropout, DropPath, Identity
from t2t_jax.models.transformer_block import Attention, Block, Mlp, dot_product_attention, get_sinusoid_encoding
from tests.support.golden import rel_f
from tests.support.jax_models import apply, equations, normal, primitive_dtypes, variables


@pytest.mark.parametrize(("positions", "width"), [(17, 64), (5, 7)])
def test_sinusoid_table(positions: int, width: int):
    table = get_sinusoid_encoding(positions, width)
    expected = np.empty((1, positions, width))
    for p in range(positions):
        for i in range(width):
            angle = p / 10000 ** (2 * (i // 2) / width)
            expected[0, p, i] = math.sin(angle) if i % 2 == 0 else math.cos(angle)
    # Computed in float64 and rounded once: float32's unit roundoff, not more.
    assert table.dtype == np.float32
    assert np.abs(table - expected).max() <= 2**-24


@pytest.mark.parametrize(("positions", "width"), [(197, 384), (577, 512)])
def test_sinusoid_table_is_pytorchs_bit_for_bit(positions: int, width: int):
    twin = t2t_torch.models.transformer_block.get_sinusoid_encoding(positions, width)
    np.testing.assert_array_equal(get_sinusoid_encoding(positions, width), twin.numpy())


def attention_by_loops(x: np.ndarray, layer: Attention) -> np.ndarray:
    w = {name: np.asarray(value[...]) for name, value in variables(layer).items()}
    B, _, C = x.shape
    D = C // layer.num_heads
    out = np.empty_like(x)
    for b in range(B):
        qkv = x[b] @ w["qkv.kernel"] + w.get("qkv.bias", 0.0)
        for h in range(layer.num_heads):
            q, k, v = (qkv[:, i * C + h * D : i * C + (h + 1) * D] for i in range(3))
            scores = np.exp(q @ k.T * layer.scale)
            out[b, :, h * D : (h + 1) * D] = scores / scores.sum(axis=1, keepdims=True) @ v
    return out @ w["proj.kernel"] + w["proj.bias"]


@pytest.mark.parametrize("options", [{}, {"qkv_bias": True}, {"qk_scale": 0.7}])
def test_attention(x64: None, options: dict[str, float | bool]):
    layer = Attention(12, num_heads=3, param_dtype=jnp.float64, rngs=nnx.Rngs(0), **options)
    layer.eval()
    for variable in variables(layer).values():
        variable.set_value(normal(*variable.shape, dtype=np.float64))
    x = normal(2, 5, 12, dtype=np.float64)
    assert layer.scale == options.get("qk_scale", 4**-0.5)
    assert rel_f(apply(layer, x), attention_by_loops(np.asarray(x), layer)) <= 1e-13


def test_attention_needs_heads_that_divide_its_width():
    with pytest.raises(ValueError, match="embed_dim 10 is not divisible by num_heads 3"):
        Attention(10, num_heads=3, rngs=nnx.Rngs(0))


def test_attention_dropout_acts_in_training():
    x = normal(2, 5, 12)
    for options in ({"attn_drop": 0.5}, {"proj_drop": 0.5}):
        layer = Attention(12, num_heads=3, rngs=nnx.Rngs(0), **options)
        assert not np.array_equal(apply(layer, x, key=0), apply(layer, x, key=1))
        layer.eval()
        np.testing.assert_array_equal(apply(layer, x, key=0), apply(layer, x))


def test_attention_with_a_dropout_at_work_is_the_same_function(x64: None):
    """Two ways to compute it, by whether weights are dropped: the same numbers and gradients where none is."""
    q, k, v = (5 * normal(2, 3, 4, 6, seed=seed, dtype=np.float64) for seed in range(3))
    run = lambda drop: lambda *qkv: dot_product_attention(*qkv, 0.5, drop, None)  # noqa: E731
    (fast, fast_back), (slow, slow_back) = (jax.vjp(run(drop), q, k, v) for drop in (Identity(), Dropout(0.0)))
    assert rel_f(fast, slow) <= 1e-14
    for mine, theirs in zip(fast_back(fast), slow_back(fast), strict=True):
        assert rel_f(mine, theirs) <= 1e-13


def test_weights_that_nothing_drops_are_never_divided():
    """The sum divides what is gathered, D numbers for each token, not N."""
    q = jnp.zeros((1, 1, 9, 2))
    for drop, divided in ((Identity(), 2), (Dropout(0.0), 9)):
        program = jax.make_jaxpr(lambda q, drop=drop: dot_product_attention(q, q, q, 1.0, drop, None))(q).jaxpr
        assert {e.outvars[0].aval.shape[-1] for e in equations(program) if e.primitive.name == "div"} == {divided}


def test_attention_survives_large_scores():
    q = jnp.full((1, 1, 3, 4), 1e4)
    assert np.isfinite(dot_product_attention(q, q, q, 1.0, Identity(), None)).all()


def test_softmax_stays_in_float32_under_bfloat16():
    layer = Attention(12, num_heads=3, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    layer.eval()
    x = normal(2, 5, 12, dtype=jnp.bfloat16)
    dtypes = primitive_dtypes(layer, x)
    assert dtypes["exp"] == {"float32"}
    assert "bfloat16" in dtypes["dot_general"]
    assert layer(x).dtype == jnp.bfloat16


def test_mlp_uses_the_exact_gelu(x64: None):
    layer = Mlp(6, 10, 4, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    layer.eval()
    for variable in variables(layer).values():
        variable.set_value(normal(*variable.shape, dtype=np.float64))
    x = normal(3, 6, dtype=np.float64)
    hidden = np.asarray(layer.fc1(x))
    hidden = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
    expected = hidden @ np.asarray(layer.fc2.kernel[...]) + np.asarray(layer.fc2.bias[...])
    assert rel_f(layer(x), expected) <= 1e-13


def test_block_is_pre_norm_with_two_residuals():
    block = Block(8, 2, mlp_ratio=3.0, rngs=nnx.Rngs(0))
    block.eval()
    x = normal(2, 4, 8)
    y = x + block.attn(block.norm1(x))
    y = y + block.mlp(block.norm2(y))
    np.testing.assert_array_equal(block(x), y)
    assert block.mlp.fc1.out_features == 24
    for layer in (block.attn.proj, block.mlp.fc2):
        layer.kernel[...] = jnp.zeros_like(layer.kernel[...])
    np.testing.assert_array_equal(block(x), x)


def test_block_norm_eps():
    assert Block(8, 2, rngs=nnx.Rngs(0)).norm1.epsilon == 1e-5
    assert Block(8, 2, norm_eps=1e-6, rngs=nnx.Rngs(0)).norm2.epsilon == 1e-6


def test_drop_path_wraps_both_branches():
    block = Block(8, 2, drop_path=1.0, rngs=nnx.Rngs(0))
    x = normal(2, 4, 8)
    np.testing.assert_array_equal(apply(block, x, key=0), x)
    block.eval()
    assert not np.array_equal(apply(block, x, key=0), x)


def test_drop_path_drops_samples_of_a_batch_one_by_one():
    block = Block(8, 2, drop_path=0.5, rngs=nnx.Rngs(0))
    x = normal(64, 4, 8)
    kept = (np.asarray(apply(block, x, key=0)) != np.asarray(x)).reshape(64, -1)
    assert (kept == kept[:, :1]).all()  # a sample changes as a whole or not at all
    assert 0.5 < kept[:, 0].mean() < 0.95  # each of two branches with probability 1/2
    assert isinstance(block.drop_path, DropPath)


def test_gradients_reach_every_parameter():
    block = Block(8, 2, rngs=nnx.Rngs(0))
    block.eval()
    graphdef, params, rest = nnx.split(block, nnx.Param, ...)
    x = normal(2, 4, 8)
    grads = jax.grad(lambda params: (nnx.merge(graphdef, params, rest)(x) ** 2).sum())(params)
    assert all(np.abs(grad[...]).max() > 0 for _, grad in nnx.to_flat_state(grads))
