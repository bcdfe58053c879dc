"""T2T-ViT-SE: squeeze-and-excitation (arXiv 1709.01507) in every attention layer (paper, section 3.2).

Source: yitu-opensource/T2T-ViT, models/t2t_vit_se.py. Twin: t2t_jax/models/t2t_vit_se.py.
Shapes: B batch, N tokens, C channels.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from t2t_torch.models import transformer_block
from t2t_torch.models.t2t_vit import T2TViT


class SELayer(nn.Module):
    """Channel gate: a bottleneck computes it from the mean over all tokens, including the class token."""

    def __init__(self, channel: int, reduction: int = 16) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(channel, channel // reduction, bias=False),
            nn.ReLU(),
            nn.Linear(channel // reduction, channel, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean(dim=1)).unsqueeze(1)


class Attention(transformer_block.Attention):
    """The backbone's attention with squeeze-and-excitation between `proj` and `proj_drop`."""

    def __init__(self, dim: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(dim, *args, **kwargs)
        self.se_layer = SELayer(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj_drop(self.se_layer(self.proj(self.attend(x))))


class Block(transformer_block.Block):
    attention_class = Attention


class T2TViTSE(T2TViT):
    block_class = Block
