"""Alignment of activation layouts: PyTorch has channels second (N C H W), JAX last (N H W C).

A transposition is accepted only if PyTorch's tensor is known to have its channels second
(`parity.recording.channels`), for layers that have them there by definition, or by a user-defined rule.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from parity.recording.channels import Axes, Labels, channels_last_axes

CHANNELS_FIRST = (
    torch.nn.modules.conv._ConvNd,
    torch.nn.modules.batchnorm._NormBase,
    torch.nn.modules.pooling._MaxPoolNd,
    torch.nn.modules.pooling._AvgPoolNd,
    torch.nn.modules.pooling._AdaptiveAvgPoolNd,
    torch.nn.modules.pooling._AdaptiveMaxPoolNd,
    torch.nn.modules.dropout._DropoutNd,
    torch.nn.GroupNorm,
    torch.nn.Unfold,
    torch.nn.Upsample,
    torch.nn.PixelShuffle,
)
"""Modules whose tensors have channels second (for plain dropout, possibly); their flax counterparts have them last."""

SEQUENCE_FIRST = (torch.nn.MultiheadAttention, torch.nn.RNNBase)
"""Modules that take (L, N, C) unless `batch_first` is set; their flax counterparts take (N, L, C)."""


def channels_last(rank: int) -> tuple[int, ...]:
    """Return the permutation that moves the second axis to the end."""
    return (0, *range(2, rank), 1)


def input_axes(rank: int) -> Axes:
    """Return the default layout of model inputs.

    Images (rank 4) and volumes (rank 5) are N C .. in PyTorch and N .. C in JAX.
    """
    return channels_last(rank) if rank in (4, 5) else None


def possible_input_axes(rank: int) -> list[Axes]:
    """Return the layouts in which JAX may take a model's input, the default one first.

    A mask or score matrix of rank 4 is not an image; a video is N T C H W in PyTorch and N T H W C in JAX; a signal is
    N C L and N L C.
    """
    others: dict[int, list[Axes]] = {3: [(0, 2, 1)], 4: [None], 5: [None, (0, 1, 3, 4, 2)]}
    return [input_axes(rank), *others.get(rank, [])]


def fitting_axes(
    torch_shape: Sequence[int],
    jax_shape: Sequence[int],
    module: torch.nn.Module | None = None,
    labels: Labels | None = None,
) -> list[Axes]:
    """Return the permutations that may convert PyTorch's activation to JAX's (None: identity).

    Usually there is one; there are two if all axes have the same size.

    Args:
        module: Layer that takes or returns the tensor; some layers have channels second by definition.
        labels: Known labels of the axes.

    Raises:
        ValueError: No layout fits.
    """
    torch_shape, jax_shape = tuple(torch_shape), tuple(jax_shape)
    known: list[Axes] = [channels_last_axes(labels)] if labels and len(labels) == len(torch_shape) else []
    if len(torch_shape) >= 3 and isinstance(module, CHANNELS_FIRST):
        known.append(channels_last(len(torch_shape)))
    if len(torch_shape) == 3 and isinstance(module, SEQUENCE_FIRST) and not module.batch_first:
        known.append((1, 0, 2))
    found = [axes for axes in dict.fromkeys([*known, None]) if _moved(torch_shape, axes) == jax_shape]
    if not found:
        raise ValueError(
            f"shapes differ: {list(torch_shape)} in PyTorch, {list(jax_shape)} in JAX"
            + _layout_hint(torch_shape, jax_shape)
        )
    return found


def _moved(shape: tuple[int, ...], axes: Axes) -> tuple[int, ...]:
    return shape if axes is None else tuple(shape[axis] for axis in axes)


def _layout_hint(torch_shape: tuple[int, ...], jax_shape: tuple[int, ...]) -> str:
    """Return advice on the rule to add if only the layout may differ."""
    if len(torch_shape) < 3 or sorted(torch_shape) != sorted(jax_shape):
        return ""
    usual = channels_last(len(torch_shape))
    axes = usual if _moved(torch_shape, usual) == jax_shape else "..."
    return f" (the same numbers in another layout? then add Rules(layouts={{NAME: {axes}}}))"


def closest_axes(candidates: Sequence[Axes], torch_array: np.ndarray, jax_array: np.ndarray) -> Axes:
    """Return the candidate permutation under which the two arrays are closest.

    A wrong layout cannot pass the gates by chance, so this cannot make different tensors pass.
    """

    def distance(axes: Axes) -> float:
        return float(np.linalg.norm((torch_array if axes is None else torch_array.transpose(axes)) - jax_array))

    return min(candidates, key=distance)
