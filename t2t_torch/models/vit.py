"""Vision Transformer (arXiv 2010.11929) and DeiT (arXiv 2012.12877), optionally distilled.

Source: yitu-opensource/T2T-ViT, models/vit.py (timm of early 2021). Twin: t2t_jax/models/vit.py.
Shapes: B batch, N patches, C channels, H W image, P patch size.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from t2t_config.shapes import drop_path_rates, patch_grid, to_pair
from t2t_torch.models.layers import check_images, init_weights
from t2t_torch.models.transformer_block import Block


class PatchEmbed(nn.Module):
    """Linear embedding of P x P patches; (B, in_chans, H, W) -> (B, N, embed_dim).

    As in timm, if P does not divide the size, the remainder at the right and bottom is ignored.
    """

    def __init__(self, img_size: tuple[int, int], patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.grid_size = patch_grid(img_size, patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """ViT: patch embedding, class token, learned positions, `depth` blocks; (B, in_chans, H, W) -> logits.

    `distilled` adds DeiT's distillation token and head: the output is (class logits, distillation logits) in training
    and their mean in evaluation. `representation_size` adds `pre_logits`, a tanh layer before the head (not if
    distilled). With `num_classes=0` the output is features.

    Raises (when called):
        ValueError: If the images are not floating-point or their rank, channels or size do not match the model.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        representation_size: int | None = None,
        distilled: bool = False,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.img_size = to_pair(img_size)
        self.in_chans = in_chans
        self.embed_dim = embed_dim
        self.num_prefix_tokens = 2 if distilled else 1
        self.patch_embed = PatchEmbed(self.img_size, patch_size, in_chans, embed_dim)
        self.grid_size = self.patch_embed.grid_size
        num_tokens = self.patch_embed.num_patches + self.num_prefix_tokens
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, num_tokens, embed_dim))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if distilled else None
        self.pos_drop = nn.Dropout(drop_rate)
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                mlp_ratio,
                qkv_bias,
                qk_scale,
                drop=drop_rate,
                attn_drop=attn_drop_rate,
                drop_path=rate,
                norm_eps=norm_eps,
            )
            for rate in drop_path_rates(drop_path_rate, depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps)
        has_pre_logits = bool(representation_size) and not distilled
        self.num_features = representation_size if representation_size and has_pre_logits else embed_dim
        self.pre_logits = (
            nn.Sequential(OrderedDict(fc=nn.Linear(embed_dim, self.num_features), act=nn.Tanh()))
            if has_pre_logits
            else nn.Identity()
        )
        self.reset_classifier(num_classes)

        for token in (self.cls_token, self.pos_embed, self.dist_token):
            if token is not None:
                nn.init.trunc_normal_(token, std=0.02)
        self.apply(init_weights)

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters without weight decay, besides the one-dimensional ones."""
        return {"pos_embed", "cls_token", "dist_token"}

    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        return self.head if self.head_dist is None else (self.head, self.head_dist)

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the head (both heads if distilled) by a new one for `num_classes` classes; 0 removes it."""
        self.num_classes = num_classes
        self.head = self._make_head()
        self.head_dist = self._make_head() if self.dist_token is not None else None

    def _make_head(self) -> nn.Module:
        head = nn.Linear(self.num_features, self.num_classes) if self.num_classes > 0 else nn.Identity()
        return head.apply(init_weights)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return all tokens after the final norm, class (and distillation) token first: (B, prefix + N, embed_dim)."""
        check_images(x, self.in_chans, self.img_size)
        x = self.patch_embed(x)
        prefix = [token.expand(x.shape[0], -1, -1) for token in (self.cls_token, self.dist_token) if token is not None]
        x = self.pos_drop(torch.cat((*prefix, x), dim=1) + self.pos_embed)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.forward_features(x)
        if self.head_dist is None:
            return self.head(self.pre_logits(x[:, 0]))
        logits, logits_dist = self.head(x[:, 0]), self.head_dist(x[:, 1])
        return (logits, logits_dist) if self.training else (logits + logits_dist) / 2
