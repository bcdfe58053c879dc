"""Attention over many tokens on TPUs, by the kernel that comes with JAX: scores never leave a core's own memory.

Shapes: B batch, N tokens, D channels.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from t2t_jax.ops.platform import on_each_device

BLOCKS = range(256, 1025, 128)
"""Tokens of a block of scores: whole rows of a TPU's registers, and few enough for its memory."""


def block_size(tokens: int) -> int:
    """The block that pads `tokens` least; of equals the largest."""
    return min(BLOCKS, key=lambda block: (-tokens % block, -block))


def kernel_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q k^T) v of one head, (B, N, D), bfloat16 or float32, its sums in float32.

    Seven products in training: the backward pass computes the scores again. Only where `batch_on` tells which devices
    hold the batch, since the compiler cannot split a kernel.
    """
    return on_each_device(_kernel, q, k, v)


def _kernel(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    B, N, _ = q.shape
    block = block_size(N)
    padding = -N % block
    q, k, v = (jnp.pad(x, ((0, 0), (0, padding), (0, 0))) for x in (q, k, v))
    with jax.ensure_compile_time_eval():
        attend = splash.make_splash_mha(  # images in place of its heads
            masks.MultiHeadMask([masks.FullMask((N + padding, N + padding))] * B),
            block_sizes=splash.BlockSizes(
                block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block, use_fused_bwd_kernel=True
            ),
            head_shards=1,
            q_seq_shards=1,
        )
    is_padded = (jnp.arange(N + padding) >= N).astype(jnp.int32)  # tokens see those of their own kind alone
    return attend(q, k, v, segment_ids=splash.SegmentIds(is_padded, is_padded))[:, :N]
