"""softmax(scores) v as it is computed here, with less work and memory than it is written.

Shapes: B batch, N M tokens, R of them at a time, D channels.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from t2t_jax.ops.float32_einsum import wide_einsum
from t2t_jax.ops.platform import on_cpu, takes_tpu_kernels


def softmax_product(attn: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(attn) v, of (..., N, M) in float32 at least and (..., M, D), in the dtype of `v`.

    The CPU's form is for a wide `v` alone: gradients of bfloat16 factors would be float32 products (see wide.py).
    """
    if on_cpu() and attn.dtype == v.dtype:
        return _divided_product(attn, v)
    return jax.nn.softmax(attn, axis=-1).astype(v.dtype) @ v


@jax.custom_jvp
def _divided_product(attn: jax.Array, v: jax.Array) -> jax.Array:
    """The sums of the softmax divide the product, D numbers for each token in place of M.

    Sum and division end up in one loop with the product, which XLA's CPU compiler then spreads over the cores; many
    small products by themselves it computes on one. A TPU would read and write more for it (docs/performance.md).
    """
    return _divide(_exp(attn), v)


@_divided_product.defjvp
def _divided_product_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    attn, v = primals
    exp = _exp(attn)
    return _divide(exp, v), _tangent(exp, v, *tangents)


@jax.checkpoint  # were the sums kept for the backward pass, they would leave the product's loop
def _tangent(exp: jax.Array, v: jax.Array, d_attn: jax.Array, d_v: jax.Array) -> jax.Array:
    total = exp.sum(axis=-1, keepdims=True)
    d_exp = exp * (d_attn - (exp * d_attn).sum(axis=-1, keepdims=True) / total)
    return (d_exp @ v + exp @ d_v) / total


def _divide(exp: jax.Array, v: jax.Array) -> jax.Array:
    return exp @ v / exp.sum(axis=-1, keepdims=True)


def _exp(attn: jax.Array) -> jax.Array:
    """exp(attn) but for a factor of each row that keeps it from overflow."""
    return jnp.exp(attn - attn.max(axis=-1, keepdims=True))


ROWS = 512
"""Most queries whose scores are held at once."""


KERNEL_TOKENS = 1024
"""Most tokens that a TPU takes without a kernel: few would be padded too much for it."""


def one_head_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q k^T) v of one head, (B, N, D), without all scores of many tokens at once.

    In a step for TPUs by a kernel, with no scores in the HBM at all; anywhere else some queries at a time.
    """
    if q.shape[1] > KERNEL_TOKENS and takes_tpu_kernels() and jnp.finfo(q.dtype).bits <= 32:
        from t2t_jax.ops.tpu_attention import kernel_attention  # of JAX's experimental part: only where it is needed

        return kernel_attention(q, k, v)
    return attention_by_rows(q, k, v)


def attention_by_rows(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q k^T) v of one head, (B, N, D), some queries at a time.

    Of 3136 tokens all scores would take 39 MB an image, several times over in training. So each part's are forgotten
    and computed again in the backward pass, for one product more than the six of training.
    """
    B, N, D = q.shape
    count = math.ceil(N / ROWS)
    rows = math.ceil(N / count)

    def attend(q_BxRxD: jax.Array) -> jax.Array:
        return softmax_product(wide_einsum("brd,bmd->brm", q_BxRxD, k), v)

    if count == 1:
        return attend(q)
    attend_again = jax.checkpoint(attend, prevent_cse=False)
    parts = jnp.pad(q, ((0, 0), (0, count * rows - N), (0, 0))).reshape(B, count, rows, D)
    found = jax.lax.map(attend_again, parts.swapaxes(0, 1)).swapaxes(0, 1)
    return found.reshape(B, count * rows, D)[:, :N]
