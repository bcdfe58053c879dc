"""Products of low-precision factors in float32, and their gradients in the factors' own precision."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp


def wide_einsum(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """`einsum(a, b)` in float32 or wider, as what softmax takes.

    The gradient is rounded to the factors' dtype before it meets them: left in float32, both products of the backward
    pass would be float32 products, slower by far on matrix units than the one of the forward pass.
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
