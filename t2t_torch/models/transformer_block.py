"""The backbone's transformer block, after timm's Vision Transformer.

Source: yitu-opensource/T2T-ViT, models/transformer_block.py. Twin: t2t_jax/models/transformer_block.py.
Shapes: B batch, N tokens, C channels, H heads, D channels per head.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2t_torch.models.layers import DropPath


class Mlp(nn.Module):
    """fc2(gelu(fc1(x))) with the exact erf GELU; (B, N, C) -> (B, N, out_features)."""

    def __init__(
        self, in_features: int, hidden_features: int, out_features: int | None = None, drop: float = 0.0
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_features, hidden_features)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_features, out_features or in_features)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.act(self.fc1(x)))
        return self.drop(self.fc2(x))


def dot_product_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, attn_drop: nn.Module) -> Tensor:
    """Return drop(softmax(q k^T * scale)) v with the heads merged: three (B, H, N, D) -> (B, N, H * D).

    PyTorch's fused kernels are used unless dropout is active, since they cannot call the module `attn_drop`.
    """
    if isinstance(attn_drop, nn.Identity) or not attn_drop.training:
        x = F.scaled_dot_product_attention(q, k, v, scale=scale)
    else:
        x = attn_drop(((q @ k.transpose(-2, -1)) * scale).softmax(dim=-1)) @ v
    return x.transpose(1, 2).flatten(2)


class Attention(nn.Module):
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
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"embed_dim {dim} is not divisible by num_heads {num_heads}: change one of them")
        self.num_heads = num_heads
        self.scale = qk_scale or (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop) if attn_drop else nn.Identity()
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def attend(self, x: Tensor) -> Tensor:
        """Return the concatenated outputs of the heads, before the output projection: (B, N, C) -> (B, N, C)."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return dot_product_attention(q, k, v, self.scale, self.attn_drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj_drop(self.proj(self.attend(x)))


class Block(nn.Module):
    """Pre-norm block: x + attn(norm1(x)), then x + mlp(norm2(x)); (B, N, C) -> (B, N, C)."""

    attention_class: type[nn.Module] = Attention
    mlp_class: type[nn.Module] = Mlp

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
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = self.attention_class(dim, num_heads, qkv_bias, qk_scale, attn_drop, drop)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = self.mlp_class(dim, int(dim * mlp_ratio), drop=drop)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def get_sinusoid_encoding(n_position: int, d_hid: int) -> Tensor:
    """Return the sinusoidal position encoding, (1, n_position, d_hid), computed in float64 and rounded to float32.

    table[p, 2i] = sin(p / 10000^(2i/d)), table[p, 2i+1] = cos(p / 10000^(2i/d)) (arXiv 1706.03762, section 3.5).
    """
    channel = np.arange(d_hid)
    angle = np.arange(n_position)[:, None] / np.power(10000, 2 * (channel // 2) / d_hid)
    table = np.where(channel % 2 == 0, np.sin(angle), np.cos(angle))
    return torch.from_numpy(table.astype(np.float32)).unsqueeze(0)
