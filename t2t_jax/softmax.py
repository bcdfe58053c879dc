"""softmax(scores) v as it is computed here, with less work and memory than it is written.

Shapes: B batch, N M tokens, R of them at a time, D channels.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from t2t_jax.platform import on_cpu
from t2t_jax.wide import wide_einsum

SOFTMAX_PRODUCT = "softmax_product"
"""Name of the product with v, for those who choose what a backward pass computes again."""


def softmax_product(attn: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(attn) v, of (..., N, M) in float32 at least and (..., M, D), in the dtype of `v`.

    On a CPU the sums of the softmax divide the product, D numbers for each token in place of M. A TPU would read and
    write more for it (docs/performance.md).
    """
    if not on_cpu():
        return checkpoint_name(jax.nn.softmax(attn, axis=-1).astype(v.dtype) @ v, SOFTMAX_PRODUCT)
    exp = jnp.exp(attn - jax.lax.stop_gradient(attn.max(axis=-1, keepdims=True)))
    total = exp.sum(axis=-1, keepdims=True)
    product = checkpoint_name(wide_einsum("...nm,...md->...nd", exp.astype(v.dtype), v), SOFTMAX_PRODUCT)
    return (product / total).astype(v.dtype)


ROWS = 512
"""Most queries whose scores are held at once."""


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
    kept = jax.checkpoint_policies.save_only_these_names(SOFTMAX_PRODUCT)
    attend_again = jax.checkpoint(attend, prevent_cse=False, policy=kept)
    parts = jnp.pad(q, ((0, 0), (0, count * rows - N), (0, 0))).reshape(B, count, rows, D)
    found = jax.lax.map(attend_again, parts.swapaxes(0, 1)).swapaxes(0, 1)
    return found.reshape(B, count * rows, D)[:, :N]
