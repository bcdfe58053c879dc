"""Tokens-to-Token ViT (arXiv 2101.11986).

Source: yitu-opensource/T2T-ViT, models/t2t_vit.py. Twin: t2t_jax/models/t2t_vit.py.
Shapes: B batch, N tokens, C channels, H W image or grid of tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from t2t_config.shapes import SOFT_SPLITS, drop_path_rates, soft_split_grids, to_pair
from t2t_torch.models.layers import check_images, init_weights
from t2t_torch.models.mix_token import MixToken
from t2t_torch.models.token_performer import TokenPerformer
from t2t_torch.models.token_transformer import TokenTransformer
from t2t_torch.models.transformer_block import Block, get_sinusoid_encoding


class T2TModule(nn.Module):
    """Tokens-to-Token module: (B, in_chans, H, W) -> (B, N, embed_dim).

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
    ) -> None:
        super().__init__()
        self.tokens_type = tokens_type
        self.grids = soft_split_grids(img_size)
        self.grid_size = self.grids[-1]
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.soft_split0: nn.Module
        self.soft_split1: nn.Module
        self.project: nn.Module
        if tokens_type == "convolution":
            self.soft_split0 = nn.Conv2d(in_chans, token_dim, *SOFT_SPLITS[0])
            self.soft_split1 = nn.Conv2d(token_dim, token_dim, *SOFT_SPLITS[1])
            self.project = nn.Conv2d(token_dim, embed_dim, *SOFT_SPLITS[2])
            return

        attention: Callable[..., nn.Module]
        if tokens_type == "performer":
            attention = functools.partial(TokenPerformer, in_dim=token_dim, drop=performer_drop_rate)
        elif tokens_type == "transformer":
            attention = functools.partial(TokenTransformer, in_dim=token_dim)
        else:
            raise ValueError(f"tokens_type {tokens_type!r} is not one of performer, transformer, convolution")
        self.soft_split0, self.soft_split1, self.soft_split2 = (
            nn.Unfold(kernel, stride=stride, padding=padding) for kernel, stride, padding in SOFT_SPLITS
        )
        self.attention1 = attention(dim=in_chans * 7 * 7)
        self.attention2 = attention(dim=token_dim * 3 * 3)
        self.project = nn.Linear(token_dim * 3 * 3, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        if self.tokens_type == "convolution":
            return self.project(self.soft_split1(self.soft_split0(x))).flatten(2).transpose(1, 2)
        # The shapes in comments are those of images of 224 x 224 pixels.
        x = self.soft_split0(x).transpose(1, 2)  # (B, 56 * 56, in_chans * 7 * 7)
        x = self.attention1(x)  # (B, 56 * 56, token_dim)
        x = self.soft_split1(_as_image(x, self.grids[0])).transpose(1, 2)  # (B, 28 * 28, token_dim * 3 * 3)
        x = self.attention2(x)  # (B, 28 * 28, token_dim)
        x = self.soft_split2(_as_image(x, self.grids[1])).transpose(1, 2)  # (B, 14 * 14, token_dim * 3 * 3)
        return self.project(x)  # (B, 14 * 14, embed_dim)


def _as_image(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, H * W, C) -> (B, C, H, W)."""
    return x.transpose(1, 2).unflatten(2, grid)


class T2TViT(nn.Module):
    """T2T-ViT: T2T module, class token, fixed sinusoidal positions, `depth` blocks; (B, in_chans, H, W) -> logits.

    With `num_classes=0` the output is the class token's features (B, embed_dim). `aux_head` adds the second classifier
    of token labeling (arXiv 2104.10858), over the N tokens: the output is (logits, token logits (B, N, num_classes))
    in training and logits + 0.5 * max over tokens in evaluation. `mix` (MixToken), passed with the call, exchanges
    tokens between images before the blocks and the token logits back after them.

    Raises (when called):
        ValueError: If the images are not floating-point or their rank, channels or size do not match the model.
    """

    block_class: type[nn.Module] = Block
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
    ) -> None:
        super().__init__()
        self.img_size = to_pair(img_size)
        self.in_chans = in_chans
        self.embed_dim = embed_dim
        self.tokens_to_token = T2TModule(
            self.img_size, tokens_type, in_chans, embed_dim, token_dim, performer_drop_rate
        )
        self.grid_size = self.tokens_to_token.grid_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        table = get_sinusoid_encoding(self.tokens_to_token.num_patches + self.num_prefix_tokens, embed_dim)
        self.pos_embed = nn.Parameter(table, requires_grad=False)
        self.pos_drop = nn.Dropout(drop_rate)
        self.blocks, self.num_features = self.make_blocks(
            depth=depth,
            drop_path_rate=drop_path_rate,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            qk_scale=qk_scale,
            drop=drop_rate,
            attn_drop=attn_drop_rate,
        )
        self.norm = nn.LayerNorm(self.num_features)
        self.has_aux_head = aux_head
        self.reset_classifier(num_classes)

        nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.apply(init_weights)

    def make_blocks(self, depth: int, drop_path_rate: float, **block_args: object) -> tuple[nn.ModuleList, int]:
        """Return the blocks and the width of their output."""
        blocks = [
            self.block_class(self.embed_dim, drop_path=rate, **block_args)
            for rate in drop_path_rates(drop_path_rate, depth)
        ]
        return nn.ModuleList(blocks), self.embed_dim

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters without weight decay, besides the one-dimensional ones."""
        return {"cls_token"}

    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        return self.head if self.aux_head is None else (self.head, self.aux_head)

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the head (both heads with `aux_head`) by a new one for `num_classes` classes; 0 removes it."""
        self.num_classes = num_classes
        self.head = self._make_head() if num_classes > 0 else nn.Identity()
        self.aux_head = self._make_head() if num_classes > 0 and self.has_aux_head else None

    def _make_head(self) -> nn.Module:
        return nn.Linear(self.num_features, self.num_classes).apply(init_weights)

    def forward_features(self, x: Tensor, mix: MixToken | None = None) -> Tensor:
        """Return all tokens after the final norm, class token first: (B, 1 + N, num_features)."""
        check_images(x, self.in_chans, self.img_size)
        x = self.tokens_to_token(x)
        if mix is not None:
            x = mix(x, self.grid_size)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        x = self.pos_drop(x + self.pos_embed)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, x: Tensor, mix: MixToken | None = None) -> Tensor | tuple[Tensor, Tensor]:
        x = self.forward_features(x, mix)
        logits = self.head(x[:, 0])
        if self.aux_head is None:
            return logits
        token_logits = self.aux_head(x[:, 1:])
        if mix is not None:
            token_logits = mix(token_logits, self.grid_size)
        return (logits, token_logits) if self.training else logits + 0.5 * token_logits.amax(dim=1)
