"""Values of tensors that do not depend on which tensor is which: the same for all that could be partners."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from parity.by_value.candidates import Shape, layouts
from parity.carry.rules import LeafRule
from parity.suggest.pieces import Piece, Sides

SIZES = (0.4, 1.0, 0.05)
"""Sizes of vectors, one after the other: with large biases, for example, an exponential may lose all effect."""

MAX_SPREAD = 64
"""Largest number of rounds in which equal elements are found; layouts that need more are not all respected."""


@dataclasses.dataclass(frozen=True)
class Class:
    """Pieces of both models that could be partners by their shapes. `flips`: kernels may be reversed."""

    ours: tuple[Piece, ...]
    theirs: tuple[Piece, ...]
    flips: bool = False

    def rules(self, shape: Shape, jax_shape: Shape) -> tuple[LeafRule, ...]:
        return layouts(shape, jax_shape, flips=self.flips)


def classes(sides: Sides, flipped: frozenset[str]) -> list[Class]:
    """Group the pieces: by the sizes of their axes where both sides have as many, else by size.

    `flipped` are the names of the kernels that JAX may hold reversed (of transposed convolutions).
    """
    by_dims: dict[Shape, tuple[list[Piece], list[Piece]]] = {}
    for side, pieces in enumerate(sides):
        for piece in pieces:
            by_dims.setdefault(piece.dims, ([], []))[side].append(piece)
    found, rest = [], dict[int, tuple[list[Piece], list[Piece]]]()
    for ours, theirs in by_dims.values():
        if len(ours) == len(theirs):
            found.append((ours, theirs))
        else:
            size = (ours or theirs)[0].size
            rest.setdefault(size, ([], []))[0].extend(ours)
            rest[size][1].extend(theirs)
    return [
        Class(tuple(ours), tuple(theirs), any(piece.name in flipped for piece in ours))
        for ours, theirs in [*found, *rest.values()]
    ]


def shared_values(
    group: Class, draw: np.random.RandomState, size: float
) -> tuple[dict[Piece, np.ndarray], dict[Piece, np.ndarray]]:
    """Return random values of all pieces of a class, equal in every layout that one could have in the other's shape.

    A square matrix is symmetric, for example, so that it makes no difference whether JAX transposes it. `size` is that
    of vectors.
    """
    shapes = list(dict.fromkeys(p.shape for p in group.ours)), list(dict.fromkeys(p.shape for p in group.theirs))
    labels = _labels(group, shapes)
    total = 1 + max(int(x.max()) for side in labels for x in side.values())
    flat = any(len(piece.dims) < 2 for piece in (*group.ours, *group.theirs))
    numbers = drawn((total,) if flat else max(shapes[0] + shapes[1], key=len), draw, size, total)
    ours, theirs = ({shape: numbers[x] for shape, x in side.items()} for side in labels)
    return {p: ours[p.shape] for p in group.ours}, {p: theirs[p.shape] for p in group.theirs}


def drawn(shape: Shape, draw: np.random.RandomState, size: float = SIZES[0], count: int | None = None) -> np.ndarray:
    """Draw values for a tensor of `shape`, or `count` of them: matrices are small by their fan-in.

    Vectors are positive, since one may be a variance, and about `size` large.
    """
    wanted = shape if count is None else (count,)
    if sum(axis != 1 for axis in shape) < 2:
        return size * draw.uniform(0.5, 1.5, wanted)
    return draw.standard_normal(wanted) * (0.7 / math.sqrt(math.prod(shape) / min(axis for axis in shape if axis != 1)))


def _labels(group: Class, shapes: tuple[Sequence[Shape], Sequence[Shape]]) -> tuple[dict[Shape, np.ndarray], ...]:
    """Label the elements of every shape so that those that have to be equal have one label."""
    known = {(s, t): rules for s in shapes[0] for t in shapes[1] if (rules := group.rules(s, t))}
    found = _spread(shapes, known)
    return found or _spread(shapes, {pair: rules[:1] for pair, rules in known.items()}) or _spread(shapes, {}) or ()


def _spread(
    shapes: tuple[Sequence[Shape], Sequence[Shape]], known: Mapping[tuple[Shape, Shape], Sequence[LeafRule]]
) -> tuple[dict[Shape, np.ndarray], ...] | None:
    """Give every element the lowest label of those it is equal to; None if that takes too many rounds."""
    start, labels = 0, (dict[Shape, np.ndarray](), dict[Shape, np.ndarray]())
    for side, own in enumerate(shapes):
        for shape in own:
            labels[side][shape] = np.arange(start, start + math.prod(shape)).reshape(shape)
            start += math.prod(shape)
    for _ in range(MAX_SPREAD):
        changed = False
        for (shape, jax_shape), rules in known.items():
            for rule in rules:
                there, here = rule.to_jax(labels[0][shape], jax_shape), labels[1][jax_shape]
                if (there != here).any():
                    lowest = np.minimum(there, here)
                    labels[0][shape], labels[1][jax_shape], changed = rule.to_torch(lowest, shape), lowest, True
        if not changed:
            return labels
    return None
