"""The backbone's transformer block, after timm's Vision Transformer.

Source: yitu-opensource/T2T-ViT, models/transformer_block.py. Twin: t2t_torch/models/transformer_block.py.
Shapes: B batch, N M tokens, C channels, H heads, D channels per head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from t2t_jax.models.layers import GELU, Dropout, DropPath, Identity, LayerNorm, Linear
from t2t_jax.ops.float32_einsum import float32_einsum
from t2t_jax.ops.softmax import softmax_product


class Mlp(nnx.Module):
    """fc2(gelu(fc1(x))) with the exact erf GELU; (B, N, C) -> (B, N, out_features)."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int | None = None,
        drop: float = 0.0,
        **spec: Any,
    ) -> None:
        self.fc1 = Linear(in_features, hidden_features, **spec)
        self.act = GELU()
        self.fc2 = Linear(hidden_features, out_features or in_features, **spec)
        self.drop = Dropout(drop)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = self.drop(self.act(self.fc1(x)), rngs=rngs)
        return self.drop(self.fc2(x), rngs=rngs)


def dot_product_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, scale: float, attn_drop: Dropout | Identity, rngs: nnx.Rngs | None
) -> jax.Array:
    """Return drop(softmax(q k^T * scale)) v with the heads merged: three (B, H, N, D) -> (B, N, H * D).

    The softmax is computed in at least float32.
    """
    attn = float32_einsum("bhnd,bhmd->bhnm", q * scale, k)
    if isinstance(attn_drop, Identity) or attn_drop.deterministic:
        x = softmax_product(attn, v)
    else:
        x = attn_drop(jax.nn.softmax(attn, axis=-1).astype(v.dtype), rngs=rngs) @ v
    return jax.lax.collapse(x.swapaxes(1, 2), 2)


class Attention(nnx.Module):
    """Multi-head self-attention, softmax(q k^T * scale) v; (B, N, C) -> (B, N, C).

    `qk_scale` replaces the default scale D^-0.5. (Upstream silently changes it to C^-0.5 with `pretrained=True`; the
    released weights use D^-0.5.)
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        **spec: Any,
    ) -> None:
        if dim % num_heads:
            raise ValueError(f"embed_dim {dim} is not divisible by num_heads {num_heads}: change one of them")
        self.num_heads = num_heads
        self.scale = qk_scale or (dim // num_heads) ** -0.5
        self.qkv = Linear(dim, dim * 3, use_bias=qkv_bias, **spec)
        self.attn_drop = Dropout(attn_drop) if attn_drop else Identity()
        self.proj = Linear(dim, dim, **spec)
        self.proj_drop = Dropout(proj_drop)

    def attend(self, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        """Return the concatenated outputs of the heads, before the output projection: (B, N, C) -> (B, N, C)."""
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).transpose(2, 0, 3, 1, 4)
        return dot_product_attention(q, k, v, self.scale, self.attn_drop, rngs)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        return self.proj_drop(self.proj(self.attend(x, rngs)), rngs=rngs)


class Block(nnx.Module):
    """Pre-norm block: x + attn(norm1(x)), then x + mlp(norm2(x)); (B, N, C) -> (B, N, C)."""

    attention_class: Callable[..., nnx.Module] = Attention
    mlp_class: Callable[..., nnx.Module] = Mlp

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-5,
        **spec: Any,
    ) -> None:
        self.norm1 = LayerNorm(dim, epsilon=norm_eps, **spec)
        self.attn = self.attention_class(dim, num_heads, qkv_bias, qk_scale, attn_drop, drop, **spec)
        self.drop_path = DropPath(drop_path)
        self.norm2 = LayerNorm(dim, epsilon=norm_eps, **spec)
        self.mlp = self.mlp_class(dim, int(dim * mlp_ratio), drop=drop, **spec)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = x + self.drop_path(self.attn(self.norm1(x), rngs), rngs=rngs)
        return x + self.drop_path(self.mlp(self.norm2(x), rngs), rngs=rngs)


def get_sinusoid_encoding(n_position: int, d_hid: int) -> np.ndarray:
    """Return the sinusoidal position encoding, (1, n_position, d_hid), computed in float64 and rounded to float32.

    table[p, 2i] = sin(p / 10000^(2i/d)), table[p, 2i+1] = cos(p / 10000^(2i/d)) (arXiv 1706.03762, section 3.5).
    """
    channel = np.arange(d_hid)
    angle = np.arange(n_position)[:, None] / np.power(10000, 2 * (channel // 2) / d_hid)
    table = np.where(channel % 2 == 0, np.sin(angle), np.cos(angle))
    return table.astype(np.float32)[None]
