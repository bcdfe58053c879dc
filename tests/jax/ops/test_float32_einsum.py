from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np

from t2t_jax.ops.float32_einsum import float32_einsum

PRODUCT = "bnd,bmd->bnm"


def factors(dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    draws = np.random.RandomState(0)
    return jnp.asarray(draws.randn(2, 5, 4), dtype), jnp.asarray(draws.randn(2, 3, 4), dtype)


def gradients(product, a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jax.grad(lambda a, b: jnp.sum(jnp.sin(product(a, b))), argnums=(0, 1))(a, b)


def test_float32_is_einsum():
    a, b = factors(jnp.float32)
    plain = lambda a, b: jnp.einsum(PRODUCT, a, b)  # noqa: E731
    wide = lambda a, b: float32_einsum(PRODUCT, a, b)  # noqa: E731
    chex.assert_trees_all_equal(wide(a, b), plain(a, b))
    chex.assert_trees_all_equal(gradients(wide, a, b), gradients(plain, a, b))


def test_bfloat16_sums_in_float32_and_takes_its_gradient_in_bfloat16():
    a, b = factors(jnp.bfloat16)
    exact = jnp.einsum(PRODUCT, a.astype(jnp.float32), b.astype(jnp.float32))
    found = float32_einsum(PRODUCT, a, b)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, exact, rtol=1e-6, atol=1e-6)
    wide = lambda a, b: float32_einsum(PRODUCT, a, b)  # noqa: E731
    exact_grads = gradients(wide, a.astype(jnp.float32), b.astype(jnp.float32))
    for grad, expected in zip(gradients(wide, a, b), exact_grads, strict=True):
        assert grad.dtype == jnp.bfloat16
        assert 0 < jnp.linalg.norm(grad - expected) < 0.01 * jnp.linalg.norm(expected)
    program = str(jax.make_jaxpr(lambda a, b: gradients(wide, a, b))(a, b))
    products = [line for line in program.splitlines() if "dot_general" in line]
    assert len(products) >= 2
    assert not [line for line in products[1:] if "f32" in line.split("=")[0]]
