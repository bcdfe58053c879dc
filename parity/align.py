"""Activations brought to one layout: PyTorch puts channels second (N C H W), JAX last (N H W C).

Which of the two it is follows from the shapes, since both sides are known; the kind of the module decides where the
shapes allow both, and a rule of the user's decides before all.
"""

from __future__ import annotations

import numpy as np
import torch

Axes = tuple[int, ...] | None

CHANNELS_FIRST = (
    torch.nn.modules.conv._ConvNd,
    torch.nn.modules.batchnorm._NormBase,
    torch.nn.modules.pooling._MaxPoolNd,
    torch.nn.modules.pooling._AvgPoolNd,
    torch.nn.modules.pooling._AdaptiveAvgPoolNd,
    torch.nn.modules.pooling._AdaptiveMaxPoolNd,
    torch.nn.GroupNorm,
    torch.nn.Unfold,
    torch.nn.Upsample,
    torch.nn.PixelShuffle,
)
"""Modules whose tensors have the channels second; their twins in flax have them last."""


def channels_last(rank: int) -> tuple[int, ...]:
    """Axes that move the second axis to the end."""
    return (0, *range(2, rank), 1)


def input_axes(rank: int) -> Axes:
    """Layout of a model's own inputs: images (rank 4) and volumes (rank 5) are N C .. in PyTorch, N .. C in JAX."""
    return channels_last(rank) if rank in (4, 5) else None


def find_axes(torch_array: np.ndarray, jax_array: np.ndarray, module: torch.nn.Module | None) -> Axes:
    """Axes that turn PyTorch's activation into JAX's; None for as it is.

    Where both layouts fit (all sides equal), the one with the smaller distance is meant: a wrong layout cannot come
    within the gates by chance, so this cannot make unequal tensors pass.

    Raises:
        ValueError: no layout fits.
    """
    rank = torch_array.ndim
    same = torch_array.shape == jax_array.shape
    axes = channels_last(rank)
    moved = rank >= 3 and torch_array.transpose(axes).shape == jax_array.shape
    if moved and isinstance(module, CHANNELS_FIRST):
        return axes
    if moved and same:
        closer = np.linalg.norm(torch_array.transpose(axes) - jax_array) < np.linalg.norm(torch_array - jax_array)
        return axes if closer else None
    if moved:
        return axes
    if same:
        return None
    raise ValueError(f"shapes differ: {list(torch_array.shape)} in PyTorch, {list(jax_array.shape)} in JAX")
