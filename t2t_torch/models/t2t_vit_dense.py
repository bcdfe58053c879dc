"""T2T-ViT-Dense: each block adds `growth_rate` channels, transitions halve the width (DenseNet, arXiv 1608.06993).

Source: yitu-opensource/T2T-ViT, models/t2t_vit_dense.py. Twin: t2t_jax/models/t2t_vit_dense.py.
Shapes: B batch, N tokens, C channels, G growth rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from t2t_config.shapes import drop_path_rates
from t2t_torch.models import transformer_block
from t2t_torch.models.t2t_vit import T2TViT


class Transition(nn.Module):
    """gelu(linear(x)) between two dense stages; (B, N, C) -> (B, N, C // 2)."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.linear(x))


class Block(transformer_block.Block):
    """Transformer block that appends its output, reduced to G channels, to its input; (B, N, C) -> (B, N, C + G)."""

    def __init__(self, growth_rate: int, dim: int, num_heads: int, **kwargs: Any) -> None:
        super().__init__(dim, num_heads, **kwargs)
        self.dense_linear = nn.Linear(dim, growth_rate)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.dense_linear(super().forward(x))), dim=2)


class T2TViTDense(T2TViT):
    """T2T-ViT with dense connections; the head's input width is that of the last stage (584 for `t2t_vit_dense`).

    Stochastic depth follows upstream: the rates are spread over `depth` = 12, not over the number of blocks, and all
    blocks of a stage use the rate at the stage's index, so the last of four stages gets 3/11 of `drop_path_rate`.
    """

    def __init__(self, *args: Any, growth_rate: int = 32, block_config: Sequence[int] = (3, 4, 6, 3), **kwargs: Any):
        # Set before T2TViT.__init__, which calls make_blocks; nn.Module allows it for plain values.
        self.growth_rate, self.block_config = growth_rate, tuple(block_config)
        super().__init__(*args, **kwargs)

    def make_blocks(self, depth: int, drop_path_rate: float, **block_args: Any) -> tuple[nn.ModuleList, int]:
        rates = drop_path_rates(drop_path_rate, depth)
        blocks, dim = nn.ModuleList(), self.embed_dim
        for stage, num_layers in enumerate(self.block_config):
            if stage > 0:
                blocks.append(Transition(dim, dim // 2))
                dim //= 2
            for _ in range(num_layers):
                blocks.append(Block(self.growth_rate, dim, drop_path=rates[stage], **block_args))
                dim += self.growth_rate
        return blocks, dim
