"""T2T-ViT-Ghost: half of the features come from cheap per-channel operations (GhostNet, arXiv 1911.11907).

Source: yitu-opensource/T2T-ViT, models/t2t_vit_ghost.py. Twin: t2t_jax/models/t2t_vit_ghost.py.
Shapes: B batch, N tokens, C channels, H heads, D channels per head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from t2t_torch.models import transformer_block
from t2t_torch.models.t2t_vit import T2TViT


class CheapOperation(nn.Conv1d):
    """Depthwise 1x1 convolution over tokens, one factor per channel; (B, N, C) -> (B, N, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, kernel_size=1, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.reshape(-1)


class MlpGhost(nn.Module):
    """fc2([x1, gelu(cheap2(x1)), gelu(cheap3(x1))]) with x1 = gelu(fc1(x)); (B, N, C) -> (B, N, C).

    As upstream, fc1 keeps the width (C -> C) and the input of fc2 has 3 C channels, so `mlp_ratio` must be 3.
    """

    def __init__(self, in_features: int, hidden_features: int, drop: float = 0.0) -> None:
        super().__init__()
        if hidden_features != 3 * in_features:
            raise ValueError(f"the Ghost block needs mlp_ratio 3, got {hidden_features / in_features:g}")
        self.fc1 = nn.Linear(in_features, in_features)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_features, in_features)
        self.drop = nn.Dropout(drop)
        self.cheap_operation2 = CheapOperation(in_features)
        self.cheap_operation3 = CheapOperation(in_features)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.act(self.fc1(x))
        x2 = self.act(self.cheap_operation2(x1))
        x3 = self.act(self.cheap_operation3(x1))
        x = self.drop(torch.cat((x1, x2, x3), dim=2))
        return self.drop(self.fc2(x))


class AttentionGhost(nn.Module):
    """Attention with q, k, v half projected, half a cheap operation on the first half; (B, N, C) -> (B, N, C)."""

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
        if dim % num_heads or dim % 2:
            raise ValueError(f"embed_dim {dim} is not even and divisible by num_heads {num_heads}: change one of them")
        self.num_heads = num_heads
        self.scale = qk_scale or (dim // num_heads) ** -0.5
        half_dim = dim // 2
        self.q = nn.Linear(dim, half_dim, bias=qkv_bias)
        self.k = nn.Linear(dim, half_dim, bias=qkv_bias)
        self.v = nn.Linear(dim, half_dim, bias=qkv_bias)
        self.cheap_operation_q = CheapOperation(half_dim)
        self.cheap_operation_k = CheapOperation(half_dim)
        self.cheap_operation_v = CheapOperation(half_dim)
        self.attn_drop = nn.Dropout(attn_drop) if attn_drop else nn.Identity()
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        q = self._heads(q, self.cheap_operation_q(q))
        k = self._heads(k, self.cheap_operation_k(k))
        v = self._heads(v, self.cheap_operation_v(v))
        x = transformer_block.dot_product_attention(q, k, v, self.scale, self.attn_drop)
        return self.proj_drop(self.proj(x))

    def _heads(self, x: Tensor, ghost: Tensor) -> Tensor:
        """Concatenate two halves and split them into heads: (B, N, C / 2) -> (B, H, N, D)."""
        return torch.cat((x, ghost), dim=2).unflatten(2, (self.num_heads, -1)).transpose(1, 2)


class Block(transformer_block.Block):
    attention_class = AttentionGhost
    mlp_class = MlpGhost


class T2TViTGhost(T2TViT):
    block_class = Block
