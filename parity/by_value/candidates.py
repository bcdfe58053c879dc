"""Candidates for the partner of a tensor: layouts that turn one shape into another, and which one is the likeliest."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from parity.carry.rules import LeafRule
from parity.carry.wrappers import likeness, plain_leaf

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


LEVELS = tuple(itertools.product(range(2), repeat=2))
"""Which of the modules around two tensors are compared: the innermost ones, or those around them."""


class Resolver:
    """Knows pairs of names, and chooses among the possible pairs of others."""

    def __init__(self, pairs: Iterable[tuple[str, str]] = ()) -> None:
        self.votes: collections.Counter[tuple[str, str]] = collections.Counter()
        for one, other in pairs:
            ours, theirs = _around(one), _around(other)
            self.votes.update((ours[i], theirs[j]) for i, j in LEVELS if i < len(ours) and j < len(theirs))

    def resolve(self, ours: Sequence[str], theirs: Sequence[str]) -> tuple[list[tuple[int, int]], bool]:
        """Pair the names of two lists, as many as the shorter one has.

        Returns:
            The positions of the pairs, the likeliest first, and whether the modules around all of them, or equal names,
            allow no other choice.
        """
        scores = {
            (i, j): (
                sum(self._votes(one, other, *level) / (1 + sum(level)) for level in LEVELS),
                plain_leaf(one) == plain_leaf(other),
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
        return chosen, self._decides(ours, theirs, chosen)

    def _votes(self, one: str, other: str, i: int, j: int) -> int:
        """Return how many pairs the i-th module around one tensor and the j-th around the other have in common."""
        ours, theirs = _around(one), _around(other)
        return self.votes[ours[i], theirs[j]] if i < len(ours) and j < len(theirs) else 0

    def _decides(self, ours: Sequence[str], theirs: Sequence[str], chosen: Sequence[tuple[int, int]]) -> bool:
        if len(ours) == len(theirs) == 1:
            return True
        if len(ours) == len(theirs) and all(likeness(ours[i], theirs[j]) == 1 for i, j in chosen):
            return len(set(ours)) == len(ours)
        for level in LEVELS:
            votes = {(i, j): self._votes(one, b, *level) for i, one in enumerate(ours) for j, b in enumerate(theirs)}
            if all((count > 0) == (pair in chosen) for pair, count in votes.items()):
                return True
        return False


def _around(name: str) -> list[str]:
    """Return the paths of the modules around a tensor, innermost first; the model itself is "" and tells nothing."""
    parts = name.split(".")[:-1]
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
