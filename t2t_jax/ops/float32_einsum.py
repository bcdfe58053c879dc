"""Products of low-precision factors in float32, with gradients in the precision of the factors."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp


def float32_einsum(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """Return `einsum(a, b)` in at least float32, as input of a softmax.

    The gradient is rounded to the factors' dtype before it is multiplied with them. Otherwise both products of the
    backward pass would be float32 products, which are far slower on matrix units than that of the forward pass.
    """
    dtype = jnp.promote_types(jnp.result_type(a, b), jnp.float32)
    if a.dtype == b.dtype == dtype:
        return jnp.einsum(subscripts, a, b)
    return _rounding_einsum(subscripts, a, b)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rounding_einsum(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)


def _forward(subscripts: str, a: jax.Array, b: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _rounding_einsum(subscripts, a, b), (a, b)


def _backward(subscripts: str, factors: tuple[jax.Array, jax.Array], grad: jax.Array) -> tuple[jax.Array, ...]:
    a, b = factors
    grad = grad.astype(jnp.result_type(a, b))
    (grad_a,) = jax.linear_transpose(lambda a: jnp.einsum(subscripts, a, b), a)(grad)
    (grad_b,) = jax.linear_transpose(lambda b: jnp.einsum(subscripts, a, b), b)(grad)
    return grad_a, grad_b


_rounding_einsum.defvjp(_forward, _backward)
