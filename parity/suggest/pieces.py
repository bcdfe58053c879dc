"""Tensors and parts of tensors, and the ways to cut those of both models so that there are as many of each size."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from parity.by_value.candidates import Shape
from parity.carry.rules import Box, slices

MAX_CUTS = 16
"""Largest number of ways to cut that are tried."""
MAX_STEPS = 8
"""Largest number of shapes that are cut."""
MAX_PARTS = 8
"""Largest number of parts of a fused tensor."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """A tensor, or a part of one: its name, the shape of the part, and its place."""

    name: str
    shape: Shape
    box: Box = ()

    @functools.cached_property
    def size(self) -> int:
        return math.prod(self.shape)

    @functools.cached_property
    def dims(self) -> Shape:
        """The sizes of the axes in ascending order, without those of size 1."""
        return tuple(sorted(size for size in self.shape if size != 1))

    @property
    def path(self) -> str:
        """The name, with the layer of a stack as a module, and a tensor that is cut as a module of its parts."""
        modules, _, leaf = self.name.rpartition(".")
        for axis, start, stop in self.box:
            if axis == 0 and stop == start + 1:
                modules = f"{modules}.#{start}" if modules else f"#{start}"
            else:
                modules, leaf = f"{modules}.{leaf}" if modules else leaf, f"#{start}"
        return f"{modules}.{leaf}" if modules else leaf

    def cut(self, axis: int, lengths: Sequence[int]) -> list[Piece]:
        """Cut along one axis into parts of these lengths."""
        bounds = {a: (start, stop) for a, start, stop in self.box}
        start, found = bounds.get(axis, (0, 0))[0], []
        for length in lengths:
            box = bounds | {axis: (start, start + length)}
            shape = (*self.shape[:axis], length, *self.shape[axis + 1 :])
            found.append(Piece(self.name, shape, tuple((a, *box[a]) for a in sorted(box))))
            start += length
        return found


def assembled(values: Mapping[Piece, np.ndarray], shapes: Mapping[str, Shape]) -> dict[str, np.ndarray]:
    """Return the whole tensors, by name, from the values of their pieces."""
    found: dict[str, np.ndarray] = {}
    for piece, value in values.items():
        whole = found.setdefault(piece.name, np.empty(shapes[piece.name]))
        whole[slices(piece.box)] = value.reshape(piece.shape)
    return found


Sides = tuple[tuple[Piece, ...], tuple[Piece, ...]]
"""The pieces of PyTorch's and of JAX's model."""


def balanced(sides: Sides) -> Iterator[Sides]:
    """Yield the sides with fused and stacked tensors cut so that both have as many pieces of each size.

    The likeliest way comes first. If sizes cannot be brought to agree, only the closest way is yielded.
    """
    queue, seen = [(_excess(sides), 0, sides)], {sides}
    closest, found = queue[0], 0
    for _ in range(20 * MAX_CUTS):
        if not queue or found == MAX_CUTS:
            break
        queue.sort(key=lambda item: item[:2])
        excess, steps, now = queue.pop(0)
        closest = min(closest, (excess, steps, now), key=lambda item: item[:2])
        if excess == 0:
            found += 1
            yield now
        elif steps < MAX_STEPS:
            for other in _steps(now):
                if other not in seen and (left := _excess(other)) <= excess:
                    seen.add(other)
                    queue.append((left, steps + 1, other))
    if not found:
        yield closest[2]


def _surplus(sides: Sides) -> dict[int, int]:
    """Return, by size, how many more pieces PyTorch has than JAX."""
    counts = collections.Counter(piece.size for piece in sides[0])
    counts.subtract(piece.size for piece in sides[1])
    return {size: count for size, count in counts.items() if count}


def _excess(sides: Sides) -> int:
    return sum(abs(count) * size for size, count in _surplus(sides).items())


def _steps(sides: Sides) -> Iterator[Sides]:
    """Yield what one step of cutting leads to: all layers of a stack, or all fused tensors of one shape."""
    surplus = _surplus(sides)
    for side, sign in ((1, -1), (0, 1)):
        wide = [piece for piece in sides[side] if sign * surplus.get(piece.size, 0) > 0]
        for length in sorted({p.shape[0] for p in wide if len(p.shape) > 1 and p.shape[0] > 1 and not p.box}):
            stacked = [p for p in wide if len(p.shape) > 1 and p.shape[0] == length and not p.box]
            yield _with_cuts(sides, side, {piece: piece.cut(0, [1] * length) for piece in stacked})
        narrow = [p for p in sides[1 - side] if sign * surplus.get(p.size, 0) < 0]
        for group in _alike(wide, surplus):
            shape = group[0].shape
            for axis, size in enumerate(shape):
                for lengths in _lengths(shape, axis, narrow):
                    if len(lengths) < 2 or sum(lengths) != size:
                        continue
                    yield _with_cuts(sides, side, {piece: piece.cut(axis, lengths) for piece in group})


def _alike(pieces: Sequence[Piece], surplus: Mapping[int, int]) -> list[list[Piece]]:
    """Group pieces by shape; where the shape has more than the surplus, by their names without numbers."""
    groups: dict[tuple[Shape, str], list[Piece]] = {}
    for piece in pieces:
        groups.setdefault((piece.shape, ""), []).append(piece)
    for piece in pieces:
        groups.setdefault((piece.shape, re.sub(r"\d+", "#", piece.name)), []).append(piece)
    found = {tuple(group): None for group in groups.values() if len(group) <= abs(surplus[group[0].size])}
    return [list(group) for group in found]


def _lengths(shape: Shape, axis: int, narrow: Sequence[Piece]) -> Iterator[tuple[int, ...]]:
    """Yield the lengths of parts along one axis that pieces of the other side have."""
    size, row = shape[axis], math.prod(shape) // shape[axis]
    known = sorted({piece.size // row for piece in narrow if piece.size % row == 0 and piece.size // row < size})
    for length in known:
        if size % length == 0 and (size // length <= MAX_PARTS or length == 1):
            yield (length,) * (size // length)
    for parts in (2, 3, 4):
        for lengths in itertools.product(known, repeat=parts):
            if sum(lengths) == size and len(set(lengths)) > 1:
                yield lengths


def _with_cuts(sides: Sides, side: int, cuts: Mapping[Piece, Sequence[Piece]]) -> Sides:
    new = tuple(part for piece in sides[side] for part in cuts.get(piece, (piece,)))
    return (new, sides[1]) if side == 0 else (sides[0], new)
