"""Candidates for the partner of a tensor: layouts that turn one shape into another, and which one is the likeliest."""

from __future__ import annotations

import collections
import dataclasses
import difflib
import functools
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from parity.carry.rules import LeafRule

Shape = tuple[int, ...]

MAX = 400
"""Largest number of layouts of one pair of shapes."""


@functools.lru_cache(maxsize=4096)
def layouts(shape: Shape, jax_shape: Shape, *, flips: bool = False, shuffled: bool = False) -> tuple[LeafRule, ...]:
    """Return rules without names that turn a PyTorch tensor of `shape` into a flax tensor of `jax_shape`.

    The usual layout of a linear layer (transposed) and of a convolution (O I K.. to K.. I O) comes first. Axes may be
    split or merged, and axes of size 1 are added or removed.

    Args:
        shape, jax_shape: The two shapes.
        flips: Also reverse the axes of the kernel of a convolution (all but the first two of PyTorch's tensor).
        shuffled: Also take the factors of a split axis in another order.
    """
    if math.prod(shape) != math.prod(jax_shape):
        return ()
    found = list(itertools.islice(_plain(shape, jax_shape, shuffled), MAX))
    if flips and len(shape) > 2:
        found += [dataclasses.replace(rule, flip=_spatial(rule, len(shape))) for rule in found if not rule.split]
    return tuple(dict.fromkeys(found))


def _plain(shape: Shape, jax_shape: Shape, shuffled: bool) -> Iterator[LeafRule]:
    if len(shape) == len(jax_shape) and 1 not in shape:
        same = [p for p in itertools.permutations(range(len(shape))) if tuple(shape[i] for i in p) == jax_shape]
        if same:
            yield from (_rule(axes) for axes in sorted(same, key=_unusual))
            return
    ours, theirs = (tuple(size for size in sizes if size != 1) for sizes in (shape, jax_shape))
    if sorted(ours) == sorted(theirs):
        axes_of_ones = ours != shape
        for axes in sorted(itertools.permutations(range(len(ours))), key=_unusual):
            if tuple(ours[i] for i in axes) == theirs:
                moved = axes != tuple(range(len(axes)))
                yield LeafRule(
                    "", "", axes if moved else None, reshape=True, split=ours if axes_of_ones and moved else ()
                )
        return
    for groups in _groups(ours, theirs, shuffled):  # flax splits axes
        flat = tuple(axis for group in groups for axis in group)
        order = tuple(int(i) for i in np.argsort(flat))
        if order == tuple(range(len(order))):
            yield LeafRule("", "", reshape=True)
        elif all(list(group) == list(range(group[0], group[0] + len(group))) for group in groups) and ours == shape:
            yield LeafRule("", "", tuple(int(i) for i in np.argsort([group[0] for group in groups])), reshape=True)
        else:
            yield LeafRule("", "", order, reshape=True, split=tuple(theirs[axis] for axis in flat))
    for groups in _groups(theirs, ours, shuffled):  # flax merges axes
        flat = tuple(axis for group in groups for axis in group)
        moved = flat != tuple(range(len(flat)))
        yield LeafRule("", "", flat if moved else None, reshape=True, split=ours if ours != shape and moved else ())


def _rule(axes: Shape) -> LeafRule:
    return LeafRule("", "", None if axes == tuple(range(len(axes))) else axes)


def _unusual(axes: Shape) -> tuple[bool, Shape]:
    """Sort key of a permutation: that of a linear layer or convolution comes first."""
    rank = len(axes)
    return axes != (*range(2, rank), 1, 0) or rank < 2, axes


def _groups(coarse: Shape, fine: Shape, shuffled: bool) -> Iterator[tuple[Shape, ...]]:
    """Yield the ways to distribute the axes of `fine` over those of `coarse`, with equal products."""
    if not coarse:
        if not fine:
            yield ()
        return

    def distribute(axis: int, left: tuple[int, ...]) -> Iterator[tuple[Shape, ...]]:
        if axis == len(coarse):
            if not left:
                yield ()
            return
        for count in range(1, len(left) + 1):
            for group in itertools.combinations(left, count):
                if math.prod(fine[i] for i in group) == coarse[axis]:
                    rest = tuple(i for i in left if i not in group)
                    orders = itertools.permutations(group) if shuffled else (group,)
                    for order in orders:
                        yield from ((order, *others) for others in distribute(axis + 1, rest))

    found = itertools.islice(distribute(0, tuple(range(len(fine)))), MAX)
    # Neighbouring axes that stay together are the likeliest.
    yield from sorted(found, key=lambda groups: sum(group[-1] - group[0] - len(group) + 1 for group in groups))


def _spatial(rule: LeafRule, rank: int) -> Shape:
    """Return the axes of flax's tensor that are PyTorch's axes from the third on."""
    axes = rule.axes or tuple(range(rank))
    return tuple(i for i, axis in enumerate(axes) if axis >= 2)


def fitting(array: np.ndarray, jax_array: np.ndarray, *, error: float = 0.0) -> list[LeafRule]:
    """Return the layouts in which `array` has the values of `jax_array`.

    Args:
        array, jax_array: PyTorch's and flax's tensor (or the parts of them in question).
        error: Largest error of an element, relative to the norm of the tensor; 0 for equal values.
    """
    shape, jax_shape = array.shape, jax_array.shape
    limit = error * float(np.linalg.norm(jax_array)) if error else 0.0

    def equal(rule: LeafRule) -> bool:
        moved = rule.to_jax(array, jax_shape)
        return bool(np.array_equal(moved, jax_array) if not error else np.abs(moved - jax_array).max() <= limit)

    found = [rule for rule in layouts(shape, jax_shape) if equal(rule)]
    for more in ({"shuffled": True}, {"flips": True}):
        if not found:
            known = layouts(shape, jax_shape)
            found = [rule for rule in layouts(shape, jax_shape, **more) if rule not in known and equal(rule)]
    return found


ALIKE = {"kernel": "weight", "scale": "weight", "embedding": "weight", "w": "weight", "b": "bias", "offset": "bias"}
ALIKE |= {"mean": "running_mean", "var": "running_var"}
"""What the leaf of a layer is called in JAX, and in PyTorch."""


class Resolver:
    """Knows pairs of names, and chooses among the possible pairs of others."""

    def __init__(self, pairs: Iterable[tuple[str, str]] = ()) -> None:
        self.votes: collections.Counter[tuple[str, str]] = collections.Counter()
        for one, other in pairs:
            self.add(one, other)

    def add(self, one: str, other: str) -> None:
        """Take a pair of tensors for certain: the modules around them belong together, too."""
        self.votes.update((a, b) for i, a in enumerate(_around(one)) for j, b in enumerate(_around(other)) if i == j)

    def neighbours(self, one: str, other: str) -> int:
        """Return how many pairs the two modules that hold these tensors have in common, the innermost ones."""
        return self.votes[one.rpartition(".")[0], other.rpartition(".")[0]]

    def resolve(self, ours: Sequence[str], theirs: Sequence[str]) -> tuple[list[tuple[int, int]], bool]:
        """Pair the names of two lists of one length.

        Returns:
            The positions of the pairs, and whether neighbours decided all of them.
        """
        scores = {
            (i, j): (
                sum(
                    self.votes[a, b] / 2**k for k, (a, b) in enumerate(zip(_around(one), _around(other), strict=False))
                ),
                _leaf(one) == _leaf(other),
                likeness(one, other),
                -abs(i / len(ours) - j / len(theirs)),
            )
            for i, one in enumerate(ours)
            for j, other in enumerate(theirs)
        }
        chosen: list[tuple[int, int]] = []
        free = set(range(len(ours))), set(range(len(theirs)))
        for i, j in sorted(scores, key=lambda pair: scores[pair], reverse=True):
            if i in free[0] and j in free[1]:
                chosen.append((i, j))
                free[0].remove(i)
                free[1].remove(j)
        return chosen, self.decides(ours, theirs, chosen)

    def decides(self, ours: Sequence[str], theirs: Sequence[str], chosen: Sequence[tuple[int, int]]) -> bool:
        """Return whether the modules around the names allow no other choice."""
        for i, j in chosen:
            own = self.neighbours(ours[i], theirs[j])
            others = [self.neighbours(ours[i], theirs[b]) for a, b in chosen if a != i]
            others += [self.neighbours(ours[a], theirs[j]) for a, b in chosen if a != i]
            if not own or any(others):
                return len(chosen) == 1
        return True


def _around(name: str) -> list[str]:
    """Return the paths of the modules around a tensor, innermost first."""
    parts = name.split(".")[:-1]
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]


def _leaf(name: str) -> str:
    leaf = name.rpartition(".")[2]
    return ALIKE.get(leaf, leaf)


def likeness(one: str, other: str) -> float:
    """Return how alike two names are, from 0 to 1."""
    words = [[*re.findall(r"[a-z]+|\d+", name.rpartition(".")[0].lower()), _leaf(name)] for name in (one, other)]
    return difflib.SequenceMatcher(None, *words, autojunk=False).ratio()
