"""Find the layout in which an array of JAX holds the values of an array of PyTorch."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from parity.measure.gates import rel_f


@dataclasses.dataclass(frozen=True)
class Layout:
    """How an array of JAX becomes one of PyTorch: reshape to `split`, permute by `axes`, reshape to `shape`."""

    split: tuple[int, ...]
    axes: tuple[int, ...]
    shape: tuple[int, ...]

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        return array.reshape(self.split).transpose(self.axes).reshape(self.shape)

    def to_jax(self, array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        moved = tuple(self.split[axis] for axis in self.axes)
        return array.reshape(moved).transpose(np.argsort(self.axes)).reshape(tuple(shape))


def layouts(jax_shape: Sequence[int], torch_shape: Sequence[int]) -> Iterator[Layout]:
    """Yield the layouts that convert an array of `jax_shape` to `torch_shape`, the order as it is first.

    Axes may be permuted, and merged on one of the two sides (heads and their channels, height and width). Axes of one
    element are ignored.
    """
    shape = tuple(torch_shape)
    theirs, ours = (tuple(n for n in sizes if n != 1) for sizes in (jax_shape, torch_shape))
    if max(len(theirs), len(ours)) > MOST_AXES:
        return
    found: dict[Layout, None] = {}
    for axes in itertools.permutations(range(len(theirs))):
        if _merges([theirs[axis] for axis in axes], ours):
            found[Layout(theirs, axes, shape)] = None
    for axes in itertools.permutations(range(len(ours))):
        split = tuple(ours[axis] for axis in axes)
        if _merges(split, theirs):
            found[Layout(split, tuple(int(i) for i in np.argsort(axes)), shape)] = None
    yield from found


MOST_AXES = 6


def _merges(fine: Sequence[int], coarse: Sequence[int]) -> bool:
    """Return whether neighbouring axes of `fine` can be merged into `coarse`."""
    left = list(fine)
    for size in coarse:
        product = 1
        while product < size and left:
            product *= left.pop(0)
        if product != size:
            return False
    return math.prod(left) == 1


def closest(value: np.ndarray, wanted: np.ndarray) -> tuple[float, Layout] | None:
    """Return the smallest relF over the layouts of `value`, and the layout; None if none fits the shapes.

    Args:
        value: Array of JAX.
        wanted: Array of PyTorch, whose layout the result is converted to.
    """
    best: tuple[float, Layout] | None = None
    probe = _probe(wanted.size)
    flat = wanted.ravel()[probe]
    for layout in layouts(value.shape, wanted.shape):
        moved = layout.to_torch(value)
        if best is not None and not _promising(moved.ravel()[probe], flat, best[0]):
            continue
        error = rel_f(moved, wanted)
        if best is None or error < best[0]:
            best = error, layout
        if error <= SAME:
            break
    return best


SAME = 1e-9


def _probe(size: int) -> np.ndarray:
    """Return positions at which layouts are compared first."""
    return np.arange(size) if size <= 512 else np.random.RandomState(0).randint(0, size, 256)


def _promising(value: np.ndarray, wanted: np.ndarray, best: float) -> bool:
    with np.errstate(over="ignore", invalid="ignore"):  # masks hold the largest numbers that there are
        scale = float(np.linalg.norm(wanted)) or 1.0
        return bool(np.linalg.norm(value - wanted) / scale <= 4 * best + 1e-12)
