"""Vision Transformer (arXiv 2010.11929) and DeiT (arXiv 2012.12877), optionally distilled.

Source: yitu-opensource/T2T-ViT, models/vit.py (timm of early 2021). Twin: t2t_torch/models/vit.py.
Shapes: B batch, N patches, C channels, H W image, P patch size. Images are NHWC.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from t2t_config.shapes import drop_path_rates, patch_grid, to_pair
from t2t_jax.models.layers import Activation, Conv, Dropout, Identity, LayerNorm, Linear, check_images, trunc_normal
from t2t_jax.models.scan_blocks import run_blocks
from t2t_jax.models.transformer_block import Block


class PatchEmbed(nnx.Module):
    """Linear embedding of P x P patches; (B, H, W, in_chans) -> (B, N, embed_dim).

    As in timm, if P does not divide the size, the remainder at the right and bottom is ignored.
    """

    def __init__(self, img_size: tuple[int, int], patch_size: int, in_chans: int, embed_dim: int, **spec: Any) -> None:
        self.grid_size = patch_grid(img_size, patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.proj = Conv(in_chans, embed_dim, patch_size, stride=patch_size, **spec)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.lax.collapse(self.proj(x), 1, 3)


class PreLogits(nnx.Module):
    """Tanh layer between features and head of the in21k models; (B, C) -> (B, out_features)."""

    def __init__(self, in_features: int, out_features: int, **spec: Any) -> None:
        self.fc = Linear(in_features, out_features, **spec)
        self.act = Activation(jnp.tanh)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.act(self.fc(x))


class VisionTransformer(nnx.Module):
    """ViT: patch embedding, class token, learned positions, `depth` blocks; (B, H, W, in_chans) -> logits.

    `distilled` adds DeiT's distillation token and head: the output is (class logits, distillation logits) in training
    and their mean in evaluation. `representation_size` adds `pre_logits`, a tanh layer before the head (not if
    distilled). With `num_classes=0` the output is features. In training, pass `rngs` (stream `dropout`) with the call.

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
        self.num_prefix_tokens = 2 if distilled else 1
        self.deterministic = False  # set by train() and eval(), as in Dropout
        self.patch_embed = PatchEmbed(self.img_size, patch_size, in_chans, embed_dim, **spec)
        self.grid_size = self.patch_embed.grid_size
        num_tokens = self.patch_embed.num_patches + self.num_prefix_tokens
        self.cls_token = nnx.Param(trunc_normal(rngs.params(), (1, 1, embed_dim), param_dtype))
        self.pos_embed = nnx.Param(trunc_normal(rngs.params(), (1, num_tokens, embed_dim), param_dtype))
        self.dist_token = nnx.data(
            nnx.Param(trunc_normal(rngs.params(), (1, 1, embed_dim), param_dtype)) if distilled else None
        )
        self.pos_drop = Dropout(drop_rate)
        self.blocks = nnx.List(
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
                **spec,
            )
            for rate in drop_path_rates(drop_path_rate, depth)
        )
        self.norm = LayerNorm(embed_dim, epsilon=norm_eps, **spec)
        has_pre_logits = bool(representation_size) and not distilled
        self.num_features = representation_size if representation_size and has_pre_logits else embed_dim
        self.pre_logits = PreLogits(embed_dim, self.num_features, **spec) if has_pre_logits else Identity()
        self.reset_classifier(num_classes, rngs=rngs)

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters without weight decay, besides the one-dimensional ones."""
        return {"pos_embed", "cls_token", "dist_token"}

    def get_classifier(self) -> nnx.Module | tuple[nnx.Module, nnx.Module]:
        return self.head if self.head_dist is None else (self.head, self.head_dist)

    def reset_classifier(self, num_classes: int, *, rngs: nnx.Rngs) -> None:
        """Replace the head (both heads if distilled) by a new one for `num_classes` classes; 0 removes it."""
        self.num_classes = num_classes
        self.head = self._make_head(rngs)
        self.head_dist = nnx.data(self._make_head(rngs) if self.dist_token is not None else None)

    def _make_head(self, rngs: nnx.Rngs) -> nnx.Module:
        spec = {"dtype": self.dtype, "param_dtype": self.param_dtype, "rngs": rngs}
        return Linear(self.num_features, self.num_classes, **spec) if self.num_classes > 0 else Identity()

    def forward_features(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Return all tokens after the final norm, class (and distillation) token first: (B, prefix + N, embed_dim)."""
        check_images(x, self.in_chans, self.img_size)
        x = self.patch_embed(x)
        prefix = [
            jnp.broadcast_to(token[...].astype(x.dtype), (x.shape[0], 1, x.shape[-1]))
            for token in (self.cls_token, self.dist_token)
            if token is not None
        ]
        x = jnp.concatenate((*prefix, x), axis=1)
        x = self.pos_drop(x + self.pos_embed[...].astype(x.dtype), rngs=rngs)
        x = run_blocks(self.blocks, x, rngs)
        return self.norm(x)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array | tuple[jax.Array, jax.Array]:
        x = self.forward_features(x, rngs)
        if self.head_dist is None:
            return self.head(self.pre_logits(x[:, 0]))
        logits, logits_dist = self.head(x[:, 0]), self.head_dist(x[:, 1])
        return (logits + logits_dist) / 2 if self.deterministic else (logits, logits_dist)
