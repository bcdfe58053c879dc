"""Track which axes of PyTorch's activations are channels through a forward pass.

A convolution returns (N, C, ..) in PyTorch and (N, .., C) in flax. A tensor is known to have this layout if it is
returned by such a layer, and stays known through operations that keep the axes: an activation, a sum, a
concatenation, a reshape that splits the channels. Nothing is inferred from shapes alone, which may match by chance.

Every axis has a label: B batch, C channels, S space.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from parity.recording.structure import flatten

Labels = str
"""One letter per axis, e.g. "BCSS" for a PyTorch batch of images."""

Axes = tuple[int, ...] | None

_CHANNELS_SECOND = frozenset(
    [
        "conv1d",
        "conv2d",
        "conv3d",
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
        "batch_norm",
        "group_norm",
        "instance_norm",
        "local_response_norm",
        "max_pool1d",
        "max_pool2d",
        "max_pool3d",
        "avg_pool1d",
        "avg_pool2d",
        "avg_pool3d",
        "lp_pool1d",
        "lp_pool2d",
        "adaptive_avg_pool1d",
        "adaptive_avg_pool2d",
        "adaptive_avg_pool3d",
        "adaptive_max_pool1d",
        "adaptive_max_pool2d",
        "adaptive_max_pool3d",
        "interpolate",
        "upsample",
        "pixel_shuffle",
        "pixel_unshuffle",
        "channel_shuffle",
        "fold",
        "grid_sample",
    ]
)
"""Functions that return channels second."""

_PERMUTATIONS = frozenset(["permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t", "adjoint"])
_RESHAPES = frozenset(["view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as"])
_PRODUCTS = frozenset(
    ["matmul", "bmm", "baddbmm", "einsum", "tensordot", "outer", "scaled_dot_product_attention", "cdist"]
)
"""Functions that combine axes of several tensors: their results are not tracked."""

_PROPERTIES = {getattr(torch.Tensor, name).__get__: name for name in ("T", "mT", "H", "mH")}


def labels_of(tensor: torch.Tensor) -> Labels | None:
    """Return the known labels of a tensor's axes."""
    return getattr(tensor, "_parity_labels", None)


def mark(tensor: torch.Tensor, labels: Labels | None) -> None:
    """Set the labels of a tensor's axes; labels of another length are dropped."""
    tensor._parity_labels = labels if labels and len(labels) == tensor.ndim else None  # type: ignore[attr-defined]


def channels_second(rank: int) -> Labels:
    return "BC" + "S" * (rank - 2)


def channels_last_axes(labels: Labels) -> Axes:
    """Return the permutation that moves the batch first and the channels last; None if they already are."""
    axes = tuple(i for letter in "BSC" for i, own in enumerate(labels) if own == letter)
    return None if axes == tuple(range(len(labels))) else axes


class ChannelAxes(TorchFunctionMode):
    """Mode that labels the axes of the results of tensor functions."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        output = function(*args, **kwargs)
        name = getattr(function, "__name__", "")
        leaves, _ = flatten((args, kwargs))
        sources = [x for x in leaves if isinstance(x, torch.Tensor) and labels_of(x)]
        known = _has_channels_second(function)
        if not (sources or known):
            return output
        for result in flatten(output)[0]:
            if isinstance(result, torch.Tensor) and not any(result is x for x in sources):
                labels = (
                    channels_second(result.ndim) if known else _followed(function, name, sources, result, args, kwargs)
                )
                mark(result, labels if labels and result.ndim >= 3 else None)
        return output


class EntersChannels(TorchFunctionMode):
    """Mode that sets `found` if a labeled tensor reaches a layer with its channels second."""

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        output = function(*args, **kwargs)
        sources = [x for x in flatten((args, kwargs))[0] if isinstance(x, torch.Tensor) and labels_of(x)]
        if sources and _has_channels_second(function):
            self.found |= any(labels_of(x) == channels_second(x.ndim) for x in sources)
        elif sources:
            for result in flatten(output)[0]:
                if isinstance(result, torch.Tensor) and not any(result is x for x in sources):
                    mark(result, _followed(function, getattr(function, "__name__", ""), sources, result, args, kwargs))
        return output


def _has_channels_second(function: Callable[..., Any]) -> bool:
    # torch.nn.functional.unfold only: Tensor.unfold adds an axis.
    return getattr(function, "__name__", "") in _CHANNELS_SECOND or function is torch.nn.functional.unfold


def _followed(
    function: Callable[..., Any],
    name: str,
    sources: Sequence[torch.Tensor],
    result: torch.Tensor,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Labels | None:
    """Return the labels of `result`, derived from the tensors that it was computed from."""
    source = sources[0]
    labels = labels_of(source) or ""
    if name in _PERMUTATIONS or function in _PROPERTIES:
        return _permuted(function, labels, source, args, kwargs)
    if name in _RESHAPES:
        return reshaped(labels, tuple(source.shape), tuple(result.shape))
    if name in _PRODUCTS:
        return None
    same = [x for x in sources if x.ndim == result.ndim]
    return labels_of(same[0]) if same else None


def _permuted(
    function: Callable[..., Any], labels: Labels, source: torch.Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Labels | None:
    """Return the permuted labels, by applying the function to a meta tensor with axes of lengths 2, 3, 4 ..."""
    probe = torch.empty(tuple(range(2, 2 + len(labels))), device="meta")
    order = function(*(probe if x is source else x for x in args), **kwargs).shape
    return "".join(labels[n - 2] for n in order)


def reshaped(labels: Labels, before: Sequence[int], after: Sequence[int]) -> Labels | None:
    """Return the labels after a reshape; None if it merges axes with different labels.

    Old and new axes are grouped such that corresponding groups have the same number of elements.
    """
    if math.prod(before) != math.prod(after) or math.prod(before) == 0:
        return None
    found, i, j = "", 0, 0
    while i < len(before) and j < len(after):
        old, new, kinds, count = before[i], after[j], {labels[i]} if before[i] > 1 else set(), 1
        kinds = kinds or {labels[i]}
        i, j = i + 1, j + 1
        while old != new:
            if old < new:
                if before[i] > 1:
                    kinds.add(labels[i])
                old, i = old * before[i], i + 1
            else:
                new, j, count = new * after[j], j + 1, count + 1
        if len(kinds) > 1:
            return None
        found += kinds.pop() * count
    rest = {labels[k] for k in range(i, len(before))} or {found[-1:]}
    return found + (rest.pop() if len(rest) == 1 else "S") * (len(after) - j)
