"""Resize position embeddings as in the authors' code."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_pos_embed(
    table: Tensor, source_grid: tuple[int, int], grid: tuple[int, int], *, num_prefix_tokens: int = 1
) -> Tensor:
    """Resize a position embedding (1, P + h * w, C) for another grid: (1, P + H * W, C).

    The grid is interpolated by `F.interpolate(mode='bicubic')`, as in the authors' `resize_pos_embed` (kernel
    a = -0.75, half-pixel centers, no antialiasing), in the dtype of `table`, but at least float32. The first
    P = `num_prefix_tokens` rows (class and distillation token) are unchanged.

    Raises:
        ValueError: `table` does not have P + h * w rows.
    """
    height, width = source_grid
    if table.shape[1] != num_prefix_tokens + height * width:
        raise ValueError(
            f"pos_embed {tuple(table.shape)} does not hold {num_prefix_tokens} + {height}x{width} tokens: "
            "check source_grid"
        )
    prefix, positions = table[:, :num_prefix_tokens], table[:, num_prefix_tokens:]
    image = positions.unflatten(1, (height, width)).permute(0, 3, 1, 2)
    image = image.to(torch.promote_types(table.dtype, torch.float32))
    image = F.interpolate(image, size=grid, mode="bicubic", align_corners=False)
    return torch.cat((prefix, image.flatten(2).transpose(1, 2).to(table.dtype)), dim=1)
