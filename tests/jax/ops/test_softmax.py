"""Attention in parts is attention."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from t2t_jax.compile import matrix_products
from t2t_jax.ops import softmax
from t2t_jax.ops.platform import traced_for
from tests.support.golden import rel_f
from tests.support.jax_models import equations, normal


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_product_of_the_softmax_and_its_derivatives(x64: None, platform: str):
    """Forward, backward and second derivatives; scores that would overflow an exponential."""
    attn, v = normal(2, 3, 5, 6, seed=0, dtype=np.float64), normal(2, 3, 6, 4, seed=1, dtype=np.float64)
    with traced_for(platform):
        assert rel_f(softmax.softmax_product(attn, v), jax.nn.softmax(attn) @ v) <= 1e-15
        check_grads(softmax.softmax_product, (attn, v), order=2, modes=("fwd", "rev"), atol=1e-6, rtol=1e-6)
        assert rel_f(softmax.softmax_product(attn + 1e4, v), jax.nn.softmax(attn) @ v) <= 1e-11


def test_neither_sums_nor_product_are_kept():
    """With the sums needed elsewhere XLA's CPU compiler takes them out of the product's loop, which then runs on one
    core."""
    attn, v = normal(2, 3, 5, 6), normal(2, 3, 6, 4)
    _, backward = jax.vjp(softmax.softmax_product, attn, v)
    assert {leaf.shape for leaf in jax.tree.leaves(backward)} == {attn.shape, v.shape}


@pytest.mark.parametrize("tokens", [5, 6, 7, 9])
def test_attention_by_rows_is_attention(x64: None, tokens: int, monkeypatch: pytest.MonkeyPatch):
    """Some queries at a time or all at once, whether their number divides or not: numbers and gradients."""
    q, k, v = (normal(2, tokens, 4, seed=seed, dtype=np.float64) for seed in range(3))
    whole, whole_back = jax.vjp(lambda q, k, v: jax.nn.softmax(q @ k.swapaxes(1, 2)) @ v, q, k, v)
    monkeypatch.setattr(softmax, "ROWS", 3)
    parts, parts_back = jax.vjp(softmax.attention_by_rows, q, k, v)
    assert rel_f(parts, whole) <= 1e-14
    for mine, theirs in zip(parts_back(whole), whole_back(whole), strict=True):
        assert rel_f(mine, theirs) <= 1e-13


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_scores_are_held_in_parts_and_computed_once_more(dtype: Any):
    """Seven products in training, five of them backward, none larger than a part's scores."""
    x = jax.ShapeDtypeStruct((1, 3136, 64), dtype)
    loss = lambda q, k, v: softmax.attention_by_rows(q, k, v).astype(jnp.float32).sum()  # noqa: E731
    program = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(x, x, x).jaxpr
    assert matrix_products(program).flops == 7 * 2 * 3136 * 3136 * 64
    largest = max(v.aval.size for equation in equations(program) for v in equation.outvars)
    assert largest == 448 * 3136
