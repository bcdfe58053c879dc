"""Activations brought to one layout: PyTorch puts channels second (N C H W), JAX last (N H W C).

Which of the two it is follows from the shapes, since both sides are known; the kind of the module decides where the
shapes allow both, and a rule of the user's decides before all.
"""

from __future__ import annotations

from collections.abc import Sequence

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


def fitting_axes(torch_shape: Sequence[int], jax_shape: Sequence[int], module: torch.nn.Module | None) -> list[Axes]:
    """The axes that may turn PyTorch's activation into JAX's (None: as it is): usually one, two if all sides are equal.

    Raises:
        ValueError: no layout fits.
    """
    torch_shape, jax_shape = tuple(torch_shape), tuple(jax_shape)
    axes = channels_last(len(torch_shape))
    moved = len(torch_shape) >= 3 and tuple(torch_shape[axis] for axis in axes) == jax_shape
    same = torch_shape == jax_shape
    if moved and isinstance(module, CHANNELS_FIRST):
        return [axes]
    found: list[Axes] = [None] * same
    # Three equal sides (B, N, C) are tokens unless the module says otherwise; four may well be an image.
    if moved and not (same and len(torch_shape) == 3):
        found.append(axes)
    if not found:
        raise ValueError(f"shapes differ: {list(torch_shape)} in PyTorch, {list(jax_shape)} in JAX")
    return found


def closest_axes(candidates: Sequence[Axes], torch_array: np.ndarray, jax_array: np.ndarray) -> Axes:
    """The candidate under which the two arrays are closest.

    A wrong layout cannot come within the gates by chance, so this cannot make unequal tensors pass.
    """

    def distance(axes: Axes) -> float:
        return float(np.linalg.norm((torch_array if axes is None else torch_array.transpose(axes)) - jax_array))

    return min(candidates, key=distance)
