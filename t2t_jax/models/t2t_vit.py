"""Tokens-to-Token ViT (arXiv 2101.11986).

Source: yitu-opensource/T2T-ViT, models/t2t_vit.py. Twin: t2t_torch/models/t2t_vit.py.
Shapes: B batch, N tokens, C channels, H W image or grid of tokens. Images are NHWC.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from t2t_config.shapes import SOFT_SPLITS, drop_path_rates, soft_split_grids, to_pair
from t2t_jax.models.layers import (
    Buffer,
    Conv,
    Dropout,
    Identity,
    LayerNorm,
    Linear,
    Unfold,
    check_images,
    trunc_normal,
)
from t2t_jax.models.mix_token import MixToken
from t2t_jax.models.scan_blocks import run_blocks
from t2t_jax.models.token_performer import TokenPerformer
from t2t_jax.models.token_transformer import TokenTransformer
from t2t_jax.models.transformer_block import Block, get_sinusoid_encoding


class T2TModule(nnx.Module):
    """Tokens-to-Token module: (B, H, W, in_chans) -> (B, N, embed_dim).

    Three soft splits (overlapping patches, channel-major features C * kh * kw) with a transformer or performer
    layer after the first and the second. tokens_type 'convolution' is the paper's ablation, which uses three
    convolutions instead (upstream's forward cannot run it).
    """

    def __init__(
        self,
        img_size: tuple[int, int] = (224, 224),
        tokens_type: str = "performer",
        in_chans: int = 3,
        embed_dim: int = 768,
        token_dim: int = 64,
        performer_drop_rate: float = 0.1,
        **spec: Any,
    ) -> None:
        self.tokens_type = tokens_type
        self.grids = soft_split_grids(img_size)
        self.grid_size = self.grids[-1]
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.soft_split0: Any
        self.soft_split1: Any
        self.project: Any
        if tokens_type == "convolution":
            self.soft_split0 = Conv(in_chans, token_dim, *SOFT_SPLITS[0], **spec)
            self.soft_split1 = Conv(token_dim, token_dim, *SOFT_SPLITS[1], **spec)
            self.project = Conv(token_dim, embed_dim, *SOFT_SPLITS[2], **spec)
            return

        attention: Callable[..., nnx.Module]
        if tokens_type == "performer":
            attention = functools.partial(TokenPerformer, in_dim=token_dim, drop=performer_drop_rate, **spec)
        elif tokens_type == "transformer":
            attention = functools.partial(TokenTransformer, in_dim=token_dim, **spec)
        else:
            raise ValueError(f"tokens_type {tokens_type!r} is not one of performer, transformer, convolution")
        self.soft_split0, self.soft_split1, self.soft_split2 = (Unfold(*split) for split in SOFT_SPLITS)
        self.attention1 = attention(dim=in_chans * 7 * 7)
        self.attention2 = attention(dim=token_dim * 3 * 3)
        self.project = Linear(token_dim * 3 * 3, embed_dim, **spec)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        if self.tokens_type == "convolution":
            x = self.project(self.soft_split1(self.soft_split0(x)))
            return jax.lax.collapse(x, 1, 3)
        # The shapes in comments are those of images of 224 x 224 pixels.
        x = self.soft_split0(x)  # (B, 56 * 56, in_chans * 7 * 7)
        x = self.attention1(x, rngs)  # (B, 56 * 56, token_dim)
        x = self.soft_split1(_as_image(x, self.grids[0]))  # (B, 28 * 28, token_dim * 3 * 3)
        x = self.attention2(x, rngs)  # (B, 28 * 28, token_dim)
        x = self.soft_split2(_as_image(x, self.grids[1]))  # (B, 14 * 14, token_dim * 3 * 3)
        return self.project(x)  # (B, 14 * 14, embed_dim)


def _as_image(x: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """(B, H * W, C) -> (B, H, W, C)."""
    return x.reshape(x.shape[0], *grid, x.shape[-1])


class T2TViT(nnx.Module):
    """T2T-ViT: T2T module, class token, fixed sinusoidal positions, `depth` blocks; (B, H, W, in_chans) -> logits.

    With `num_classes=0` the output is the class token's features (B, embed_dim). `aux_head` adds the second classifier
    of token labeling (arXiv 2104.10858), over the N tokens: the output is (logits, token logits (B, N, num_classes))
    in training and logits + 0.5 * max over tokens in evaluation. `mix` (MixToken), passed with the call, exchanges
    tokens between images before the blocks and the token logits back after them. In training, pass `rngs`
    (stream `dropout`) with the call.

    Raises (when called):
        ValueError: If the images are not floating-point or their rank, channels or size do not match the model.
    """

    block_class: Callable[..., nnx.Module] = Block
    num_prefix_tokens = 1

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        tokens_type: str = "performer",
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        token_dim: int = 64,
        performer_drop_rate: float = 0.1,
        aux_head: bool = False,
        *,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.dtype, self.param_dtype = dtype, param_dtype
        spec: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.img_size = to_pair(img_size)
        self.in_chans = in_chans
        self.embed_dim = embed_dim
        self.deterministic = False  # set by train() and eval(), as in Dropout
        self.tokens_to_token = T2TModule(
            self.img_size, tokens_type, in_chans, embed_dim, token_dim, performer_drop_rate, **spec
        )
        self.grid_size = self.tokens_to_token.grid_size
        self.cls_token = nnx.Param(trunc_normal(rngs.params(), (1, 1, embed_dim), param_dtype))
        table = get_sinusoid_encoding(self.tokens_to_token.num_patches + self.num_prefix_tokens, embed_dim)
        self.pos_embed = Buffer(jnp.asarray(table, param_dtype))
        self.pos_drop = Dropout(drop_rate)
        self.blocks, self.num_features = self.make_blocks(
            depth=depth,
            drop_path_rate=drop_path_rate,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            qk_scale=qk_scale,
            drop=drop_rate,
            attn_drop=attn_drop_rate,
            **spec,
        )
        self.norm = LayerNorm(self.num_features, **spec)
        self.has_aux_head = aux_head
        self.reset_classifier(num_classes, rngs=rngs)

    def make_blocks(self, depth: int, drop_path_rate: float, **block_args: Any) -> tuple[nnx.List, int]:
        """Return the blocks and the width of their output."""
        blocks = [
            self.block_class(self.embed_dim, drop_path=rate, **block_args)
            for rate in drop_path_rates(drop_path_rate, depth)
        ]
        return nnx.List(blocks), self.embed_dim

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters without weight decay, besides the one-dimensional ones."""
        return {"cls_token"}

    def get_classifier(self) -> nnx.Module | tuple[nnx.Module, nnx.Module]:
        return self.head if self.aux_head is None else (self.head, self.aux_head)

    def reset_classifier(self, num_classes: int, *, rngs: nnx.Rngs) -> None:
        """Replace the head (both heads with `aux_head`) by a new one for `num_classes` classes; 0 removes it."""
        self.num_classes = num_classes
        self.head = self._make_head(rngs) if num_classes > 0 else Identity()
        self.aux_head = nnx.data(self._make_head(rngs) if num_classes > 0 and self.has_aux_head else None)

    def _make_head(self, rngs: nnx.Rngs) -> nnx.Module:
        spec = {"dtype": self.dtype, "param_dtype": self.param_dtype, "rngs": rngs}
        return Linear(self.num_features, self.num_classes, **spec)

    def forward_features(self, x: jax.Array, rngs: nnx.Rngs | None = None, mix: MixToken | None = None) -> jax.Array:
        """Return all tokens after the final norm, class token first: (B, 1 + N, num_features)."""
        check_images(x, self.in_chans, self.img_size)
        x = self.tokens_to_token(x, rngs)
        if mix is not None:
            x = mix(x, self.grid_size)
        cls_token = jnp.broadcast_to(self.cls_token[...].astype(x.dtype), (x.shape[0], 1, x.shape[-1]))
        x = jnp.concatenate((cls_token, x), axis=1)
        x = self.pos_drop(x + self.pos_embed[...].astype(x.dtype), rngs=rngs)
        x = run_blocks(self.blocks, x, rngs)
        return self.norm(x)

    def __call__(
        self, x: jax.Array, rngs: nnx.Rngs | None = None, mix: MixToken | None = None
    ) -> jax.Array | tuple[jax.Array, jax.Array]:
        x = self.forward_features(x, rngs, mix)
        logits = self.head(x[:, 0])
        if self.aux_head is None:
            return logits
        token_logits = self.aux_head(x[:, 1:])
        if mix is not None:
            token_logits = mix(token_logits, self.grid_size)
        return logits + 0.5 * token_logits.max(axis=1) if self.deterministic else (logits, token_logits)
