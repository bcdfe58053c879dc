"""Attention over many tokens on TPUs with JAX's splash attention kernel, which keeps scores in on-chip memory.

Shapes: B batch, N tokens, D channels.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from t2t_jax.ops.platform import on_each_device

BLOCKS = range(256, 1025, 128)
"""Supported block sizes in tokens: multiples of a TPU register's row that fit in on-chip memory."""


def block_size(tokens: int) -> int:
    """Return the block size that needs the least padding for `tokens` tokens; the largest one on a tie."""
    return min(BLOCKS, key=lambda block: (-tokens % block, -block))


def kernel_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Return softmax(q k^T) v of one head, (B, N, D), in bfloat16 or float32, with sums in float32.

    Training takes seven products, since the backward pass recomputes the scores. `batch_on` must specify the devices
    of the batch, since the compiler cannot partition a kernel.
    """
    return on_each_device(_kernel, q, k, v)


def _kernel(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    B, N, _ = q.shape
    block = block_size(N)
    padding = -N % block
    q, k, v = (jnp.pad(x, ((0, 0), (0, padding), (0, 0))) for x in (q, k, v))
    with jax.ensure_compile_time_eval():
        attend = splash.make_splash_mha(  # the heads axis holds the images
            masks.MultiHeadMask([masks.FullMask((N + padding, N + padding))] * B),
            block_sizes=splash.BlockSizes(
                block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block, use_fused_bwd_kernel=True
            ),
            head_shards=1,
            q_seq_shards=1,
        )
    is_padded = (jnp.arange(N + padding) >= N).astype(jnp.int32)  # tokens attend only to tokens of the same segment
    return attend(q, k, v, segment_ids=splash.SegmentIds(is_padded, is_padded))[:, :N]
