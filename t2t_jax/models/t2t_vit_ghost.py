"""T2T-ViT-Ghost: half of the features come from cheap per-channel operations (GhostNet, arXiv 1911.11907).

Source: yitu-opensource/T2T-ViT, models/t2t_vit_ghost.py. Twin: t2t_torch/models/t2t_vit_ghost.py.
Shapes: B batch, N tokens, C channels, H heads, D channels per head.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from t2t_jax.models import transformer_block
from t2t_jax.models.layers import GELU, Dropout, Identity, Linear, symmetric_uniform
from t2t_jax.models.t2t_vit import T2TViT


class CheapOperation(nnx.Conv):
    """Depthwise 1x1 convolution over tokens, one factor per channel; (B, N, C) -> (B, N, C)."""

    def __init__(self, channels: int, **spec: Any) -> None:
        super().__init__(
            channels,
            channels,
            kernel_size=(1,),
            feature_group_count=channels,
            use_bias=False,
            kernel_init=symmetric_uniform(1.0),
            **spec,
        )

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        x, kernel = self.promote_dtype((inputs, self.kernel[...]), dtype=self.dtype)
        return x * kernel  # (1, 1, C)


class MlpGhost(nnx.Module):
    """fc2([x1, gelu(cheap2(x1)), gelu(cheap3(x1))]) with x1 = gelu(fc1(x)); (B, N, C) -> (B, N, C).

    As upstream, fc1 keeps the width (C -> C) and the input of fc2 has 3 C channels, so `mlp_ratio` must be 3.
    """

    def __init__(self, in_features: int, hidden_features: int, drop: float = 0.0, **spec: Any) -> None:
        if hidden_features != 3 * in_features:
            raise ValueError(f"the Ghost block needs mlp_ratio 3, got {hidden_features / in_features:g}")
        self.fc1 = Linear(in_features, in_features, **spec)
        self.act = GELU()
        self.fc2 = Linear(hidden_features, in_features, **spec)
        self.drop = Dropout(drop)
        self.cheap_operation2 = CheapOperation(in_features, **spec)
        self.cheap_operation3 = CheapOperation(in_features, **spec)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        x1 = self.act(self.fc1(x))
        x2 = self.act(self.cheap_operation2(x1))
        x3 = self.act(self.cheap_operation3(x1))
        x = self.drop(jnp.concatenate((x1, x2, x3), axis=2), rngs=rngs)
        return self.drop(self.fc2(x), rngs=rngs)


class AttentionGhost(nnx.Module):
    """Attention with q, k, v half projected, half a cheap operation on the first half; (B, N, C) -> (B, N, C)."""

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
        if dim % num_heads or dim % 2:
            raise ValueError(f"embed_dim {dim} is not even and divisible by num_heads {num_heads}: change one of them")
        self.num_heads = num_heads
        self.scale = qk_scale or (dim // num_heads) ** -0.5
        half_dim = dim // 2
        self.q = Linear(dim, half_dim, use_bias=qkv_bias, **spec)
        self.k = Linear(dim, half_dim, use_bias=qkv_bias, **spec)
        self.v = Linear(dim, half_dim, use_bias=qkv_bias, **spec)
        self.cheap_operation_q = CheapOperation(half_dim, **spec)
        self.cheap_operation_k = CheapOperation(half_dim, **spec)
        self.cheap_operation_v = CheapOperation(half_dim, **spec)
        self.attn_drop = Dropout(attn_drop) if attn_drop else Identity()
        self.proj = Linear(dim, dim, **spec)
        self.proj_drop = Dropout(proj_drop)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        q, k, v = self.q(x), self.k(x), self.v(x)
        q = self._heads(q, self.cheap_operation_q(q))
        k = self._heads(k, self.cheap_operation_k(k))
        v = self._heads(v, self.cheap_operation_v(v))
        x = transformer_block.dot_product_attention(q, k, v, self.scale, self.attn_drop, rngs)
        return self.proj_drop(self.proj(x), rngs=rngs)

    def _heads(self, x: jax.Array, ghost: jax.Array) -> jax.Array:
        """Concatenate two halves and split them into heads: (B, N, C / 2) -> (B, H, N, D)."""
        B, N, half = x.shape
        return (
            jnp.concatenate((x, ghost), axis=2).reshape(B, N, self.num_heads, 2 * half // self.num_heads).swapaxes(1, 2)
        )


class Block(transformer_block.Block):
    attention_class = AttentionGhost
    mlp_class = MlpGhost


class T2TViTGhost(T2TViT):
    block_class = Block
