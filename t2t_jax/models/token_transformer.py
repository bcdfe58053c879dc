"""The T2T module's transformer layer with softmax attention (paper, section 3.1).

Source: yitu-opensource/T2T-ViT, models/token_transformer.py. Twin: t2t_torch/models/token_transformer.py.
Shapes: B batch, N tokens, C channels in, D token_dim.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from t2t_jax.models.layers import LayerNorm, Linear
from t2t_jax.models.transformer_block import Mlp
from t2t_jax.ops.softmax import one_head_attention


class Attention(nnx.Module):
    """Attention that changes the width, (B, N, C) -> (B, N, D); the skip connection is `v`.

    As upstream, the scale is C^-0.5, with C the input width (147 or 576), not D^-0.5, and `q` is scaled before the
    product.
    """

    def __init__(self, dim: int, in_dim: int, qk_scale: float | None = None, **spec: Any) -> None:
        self.scale = qk_scale or dim**-0.5
        self.qkv = Linear(dim, in_dim * 3, use_bias=False, **spec)
        self.proj = Linear(in_dim, in_dim, **spec)

    def __call__(self, x: jax.Array) -> jax.Array:
        q, k, v = jnp.split(self.qkv(x), 3, axis=-1)
        return v + self.proj(one_head_attention(q * self.scale, k, v))


class TokenTransformer(nnx.Module):
    """Transformer layer of the T2T module: attn(norm1(x)), then x + mlp(norm2(x)); (B, N, dim) -> (B, N, in_dim).

    `dim` is the input width, `in_dim` (upstream's name) the width inside the layer and of the output.
    """

    def __init__(self, dim: int, in_dim: int, mlp_ratio: float = 1.0, **spec: Any) -> None:
        self.norm1 = LayerNorm(dim, **spec)
        self.attn = Attention(dim, in_dim, **spec)
        self.norm2 = LayerNorm(in_dim, **spec)
        self.mlp = Mlp(in_dim, int(in_dim * mlp_ratio), **spec)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x), rngs)
