"""Implementations of softmax(scores) v that take less time and memory than the plain formula.

Shapes: B batch, N M tokens, R tokens per chunk, D channels.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from t2t_jax.ops.float32_einsum import float32_einsum
from t2t_jax.ops.platform import on_cpu, takes_tpu_kernels


def softmax_product(attn: jax.Array, v: jax.Array) -> jax.Array:
    """Return softmax(attn) v in the dtype of `v`; attn is (..., N, M) in at least float32, v is (..., M, D).

    The CPU implementation requires `v` in the dtype of `attn`: with bfloat16 factors, its gradients would be float32
    products (see float32_einsum.py).
    """
    if on_cpu() and attn.dtype == v.dtype:
        return _divided_product(attn, v)
    return jax.nn.softmax(attn, axis=-1).astype(v.dtype) @ v


@jax.custom_jvp
def _divided_product(attn: jax.Array, v: jax.Array) -> jax.Array:
    """Return softmax(attn) v, dividing by the softmax sums after the product: D divisions per token instead of M.

    XLA's CPU compiler fuses sum, division and product into one loop, which it runs on all cores; many small products
    on their own run on a single core. On a TPU this reads and writes more memory (docs/performance.md).
    """
    return _divide(_exp(attn), v)


@_divided_product.defjvp
def _divided_product_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    attn, v = primals
    exp = _exp(attn)
    return _divide(exp, v), _tangent(exp, v, *tangents)


@jax.checkpoint  # sums saved for the backward pass would not be fused with the product
def _tangent(exp: jax.Array, v: jax.Array, d_attn: jax.Array, d_v: jax.Array) -> jax.Array:
    total = exp.sum(axis=-1, keepdims=True)
    d_exp = exp * (d_attn - (exp * d_attn).sum(axis=-1, keepdims=True) / total)
    return (d_exp @ v + exp @ d_v) / total


def _divide(exp: jax.Array, v: jax.Array) -> jax.Array:
    return exp @ v / exp.sum(axis=-1, keepdims=True)


def _exp(attn: jax.Array) -> jax.Array:
    """Return exp(attn) up to a factor per row, which prevents overflow."""
    return jnp.exp(attn - attn.max(axis=-1, keepdims=True))


ROWS = 512
"""Maximum number of queries per chunk, whose scores are in memory at the same time."""


KERNEL_TOKENS = 1024
"""Maximum number of tokens for which a TPU does not use the kernel, which would pad short sequences too much."""


def one_head_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Return softmax(q k^T) v of one head, (B, N, D), without storing all scores of many tokens at the same time.

    A step for TPUs uses a kernel, which stores no scores in HBM; otherwise, the queries are processed in chunks.
    """
    if q.shape[1] > KERNEL_TOKENS and takes_tpu_kernels() and jnp.finfo(q.dtype).bits <= 32:
        from t2t_jax.ops.tpu_attention import kernel_attention  # uses jax.experimental: import only if needed

        return kernel_attention(q, k, v)
    return attention_by_rows(q, k, v)


def attention_by_rows(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Return softmax(q k^T) v of one head, (B, N, D), computed in chunks of queries.

    All scores of 3136 tokens would take 39 MB per image, and several times as much in training. The scores of a chunk
    are therefore recomputed in the backward pass, which adds one product to the six of training.
    """
    B, N, D = q.shape
    count = math.ceil(N / ROWS)
    rows = math.ceil(N / count)

    def attend(q_BxRxD: jax.Array) -> jax.Array:
        return softmax_product(float32_einsum("brd,bmd->brm", q_BxRxD, k), v)

    if count == 1:
        return attend(q)
    attend_again = jax.checkpoint(attend, prevent_cse=False)
    parts = jnp.pad(q, ((0, 0), (0, count * rows - N), (0, 0))).reshape(B, count, rows, D)
    found = jax.lax.map(attend_again, parts.swapaxes(0, 1)).swapaxes(0, 1)
    return found.reshape(B, count * rows, D)[:, :N]
