"""T2T-ViT-SE: squeeze-and-excitation (arXiv 1709.01507) in every attention layer (paper, section 3.2).

Source: yitu-opensource/T2T-ViT, models/t2t_vit_se.py. Twin: t2t_torch/models/t2t_vit_se.py.
Shapes: B batch, N tokens, C channels.
"""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

from t2t_jax.models import transformer_block
from t2t_jax.models.layers import Activation, Linear, Sequential
from t2t_jax.models.t2t_vit import T2TViT


class SELayer(nnx.Module):
    """Channel gate: a bottleneck computes it from the mean over all tokens, including the class token."""

    def __init__(self, channel: int, reduction: int = 16, **spec: Any) -> None:
        self.fc = Sequential(
            [
                Linear(channel, channel // reduction, use_bias=False, **spec),
                Activation(jax.nn.relu),
                Linear(channel // reduction, channel, use_bias=False, **spec),
                Activation(jax.nn.sigmoid),
            ]
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.fc(x.mean(axis=1))[:, None]


class Attention(transformer_block.Attention):
    """The backbone's attention with squeeze-and-excitation between `proj` and `proj_drop`."""

    def __init__(self, dim: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(dim, *args, **kwargs)
        spec = {name: kwargs[name] for name in ("dtype", "param_dtype", "rngs") if name in kwargs}
        self.se_layer = SELayer(dim, **spec)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        return self.proj_drop(self.se_layer(self.proj(self.attend(x, rngs))), rngs=rngs)


class Block(transformer_block.Block):
    attention_class = Attention


class T2TViTSE(T2TViT):
    block_class = Block
