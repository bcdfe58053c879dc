"""The T2T module's transformer layer with softmax attention (paper, section 3.1).

Source: yitu-opensource/T2T-ViT, models/token_transformer.py. Twin: t2t_torch/token_transformer.py.
Shapes: B batch, N M tokens, R of them at a time, C channels in, D token_dim.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from t2t_jax.layers import LayerNorm, Linear
from t2t_jax.transformer_block import SOFTMAX_PRODUCT, Mlp, softmax_product
from t2t_jax.wide import wide_einsum

ROWS = 512
"""Most queries whose scores are held at once."""


def attention_by_rows(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q k^T) v of one head, (B, N, D), some queries at a time.

    Of 3136 tokens all scores would take 39 MB an image, several times over in training. So each part's are forgotten
    and computed again in the backward pass: a seventh of the memory, for one product more than the six of training.
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


class Attention(nnx.Module):
    """Attention that changes the width, (B, N, C) -> (B, N, D); the skip connection is `v`.

    Two quirks of upstream are kept: the scale is C^-0.5, of the width that comes in (147 or 576), not D^-0.5; and
    `q` is scaled before the product.
    """

    def __init__(self, dim: int, in_dim: int, qk_scale: float | None = None, **spec: Any) -> None:
        self.scale = qk_scale or dim**-0.5
        self.qkv = Linear(dim, in_dim * 3, use_bias=False, **spec)
        self.proj = Linear(in_dim, in_dim, **spec)

    def __call__(self, x: jax.Array) -> jax.Array:
        q, k, v = jnp.split(self.qkv(x), 3, axis=-1)
        return v + self.proj(attention_by_rows(q * self.scale, k, v))


class TokenTransformer(nnx.Module):
    """One T2T transformer: attn(norm1(x)), then x + mlp(norm2(x)); (B, N, dim) -> (B, N, in_dim).

    `in_dim` (upstream's name) is the width inside the layer and of its output, `dim` that of its input.
    """

    def __init__(self, dim: int, in_dim: int, mlp_ratio: float = 1.0, **spec: Any) -> None:
        self.norm1 = LayerNorm(dim, **spec)
        self.attn = Attention(dim, in_dim, **spec)
        self.norm2 = LayerNorm(in_dim, **spec)
        self.mlp = Mlp(in_dim, int(in_dim * mlp_ratio), **spec)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x), rngs)
