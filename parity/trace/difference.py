"""A difference between the two models: operations of PyTorch, and the values of JAX that stand for their results."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from parity.trace.order import Misplaced
from parity.trace.regions import Region
from parity.trace.values.layout import Layout
from parity.trace.values.match import Matches
from parity.trace.values.source import jax_line


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A value of JAX that may stand for one of PyTorch's: its number, relF, and its array in PyTorch's layout."""

    number: int
    error: float
    layout: Layout
    array: np.ndarray


@dataclasses.dataclass(frozen=True)
class Difference:
    """A region of operations that differs by itself.

    Attributes:
        region: The operations of PyTorch.
        candidates: For each of its operations, the values of JAX that are closest, the closest first.
        lines: Lines of the JAX code that compute the region, in order, the first that differs first.
        matches: The values of JAX when the region was found.
        wanted: PyTorch's results of the region's ends.
        misplaced: The value that the region is computed from, if JAX has its numbers in another order: then that is
            the difference.
        instead: The equal value that JAX gives the region's first operation instead of the right one.
    """

    region: Region
    candidates: Mapping[int, Sequence[Candidate]]
    lines: tuple[str, ...]
    matches: Matches
    wanted: Mapping[int, np.ndarray]
    misplaced: Misplaced | None = None
    instead: Misplaced | None = None

    def chosen(self, attempt: int) -> Difference:
        """Return the difference with those candidates first that were put in the place of its ends in this attempt."""
        if self.misplaced:
            return self
        moved = dict(self.candidates)
        for end in self.region.ends:
            if found := moved.get(end):
                chosen = found[min(attempt, len(found) - 1)]
                moved[end] = [chosen, *(x for x in found if x is not chosen)]
        return dataclasses.replace(self, candidates=moved)

    def best(self, operation: int) -> Candidate | None:
        return next(iter(self.candidates.get(operation, ())), None)


def with_lines(difference: Difference) -> Difference:
    """Add the lines of JAX between the equal values and the values that stand for the region's results."""
    if difference.misplaced is not None:
        return difference
    region, matches = difference.region, difference.matches
    best = {op: difference.best(op) for op in region.operations}
    ends = {found.number for end in region.ends if (found := best[end]) is not None}
    equal = all_equal(matches)
    passed = [max(_equal(matches, number)) for number in sorted(ends & region.known)]
    passed += sorted((ends & equal) - region.known)
    inside = sorted(sources(matches, ends) - sources(matches, region.known) - equal)
    first = [
        x.number for op in region.operations if (x := best[op]) is not None and x.error < CLOSE and x.number in inside
    ]
    lines = [jax_line(matches.scopes[number]) for number in (*passed, *first[:1], *inside)]
    return dataclasses.replace(difference, lines=tuple(dict.fromkeys(line for line in lines if line)))


def _equal(matches: Matches, number: int) -> list[int]:
    """Return the values of JAX that are equal to this one."""
    own = matches.values[number].values
    return [n for n, x in matches.values.items() if x.values.size == own.size and bool(own.matches(x.values.sums))]


CLOSE = 0.5
"""relF up to which a value of JAX is taken for the wrong version of PyTorch's."""


def sources(matches: Matches, numbers: Collection[int]) -> set[int]:
    """Return everything that these values are computed from, and these."""
    found = set(numbers)
    for number in reversed(range(len(matches.inputs))):
        if number in found:
            found |= matches.inputs[number]
    return found


def all_equal(matches: Matches) -> set[int]:
    return {number for numbers in matches.operations for number in numbers}
