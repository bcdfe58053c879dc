"""Find operations that are right, but that JAX gives a wrong value: what PyTorch computes from it is JAX's result."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from parity.trace.difference import all_equal
from parity.trace.values.fingerprint import Fingerprint
from parity.trace.values.layout import Layout, closest, layouts
from parity.trace.values.match import Matches
from parity.trace.values.torch_operations import Values

MOST_VALUES = 40
"""Number of values of JAX that are tried in place of one tensor."""

MOST_STEPS = 12
"""Number of steps of JAX within which a wrong value is computed from the right one."""

MOST_LAYOUTS = 6
"""Number of layouts in which each is tried."""

MOST_BYTES = 2**28
"""Size of all of them."""


@dataclasses.dataclass(frozen=True)
class Given:
    """A value that JAX gives an operation in place of PyTorch's tensor.

    Attributes:
        index: Index of the tensor in `Values.given`.
        number: Number of JAX's value.
        array: The value, in PyTorch's layout.
        result: Number of the value of JAX that PyTorch's operation computes from it.
    """

    index: int
    number: int
    array: np.ndarray
    result: int


def substitutes(values: Values, matches: Matches) -> dict[int, list[int]]:
    """Return, for every tensor that an operation takes, the values of JAX that may be in its place.

    These are values of the same size: those computed from the right one within a few steps, and results of other
    operations of PyTorch. What is computed from the other tensors that the operation takes is none, unless the right
    one is too: the same operation of a later layer also computes its result from its own input.
    """
    equal = all_equal(matches)
    partners = [partners_of(tensor, matches) for tensor in values.given]
    found = {}
    for index, tensor in enumerate(values.given):
        own = partners[index]
        behind, place = matches.descend(own), max(own, default=0)
        after = set[int]().union(*(matches.descend(x) for i, x in enumerate(partners) if i != index))
        after = set() if not after.isdisjoint(own) else after
        numbers = [n for n, x in matches.values.items() if math.prod(x.shape) == tensor.size and n not in own]
        numbers = [n for n in numbers if n not in after and (n in equal or (n in behind and n <= place + MOST_STEPS))]
        numbers.sort(key=lambda n: (n not in behind, abs(n - place)))
        found[index] = numbers[: max(min(MOST_VALUES, MOST_BYTES // (8 * tensor.size)), 1)]
    return found


def partners_of(tensor: np.ndarray, matches: Matches) -> list[int]:
    """Return the values of JAX that hold the numbers of a tensor, in whatever order."""
    own = Fingerprint.of(tensor)
    if not own.identifies:
        return []
    return [n for n, x in matches.values.items() if x.values.size == own.size and bool(own.matches(x.values.sums))]


def given_instead(
    values: Values, tried: Mapping[int, Sequence[int]], arrays: Mapping[int, np.ndarray], matches: Matches
) -> Given | None:
    """Return the first value of JAX from which PyTorch's operation computes another value of JAX; None if none does.

    Args:
        tried: What `substitutes` returned.
        arrays: Their arrays.
    """
    usual = _usual(values, arrays, matches)
    equal = all_equal(matches)
    for index, numbers in tried.items():
        tensor = values.given[index]
        for number in numbers:
            results = [n for n in matches.descend([number]) if n != number and n in matches.values and n not in equal]
            if not results:
                continue
            for layout in _layouts(arrays[number], tensor, usual):
                array = layout.to_torch(arrays[number])
                result = _computed(values, index, array, results, matches)
                if result is not None:
                    return Given(index, number, array, result)
    return None


def _usual(values: Values, arrays: Mapping[int, np.ndarray], matches: Matches) -> list[Layout]:
    """Return the layouts in which the right tensors are values of JAX."""
    found = []
    for tensor in values.given:
        for number in partners_of(tensor, matches)[:2]:
            best = closest(arrays[number], tensor) if number in arrays and arrays[number].size == tensor.size else None
            found += [] if best is None else [best[1]]
    return found


def _layouts(array: np.ndarray, tensor: np.ndarray, usual: Sequence[Layout]) -> Iterator[Layout]:
    """Yield layouts that turn the array into the tensor's shape: those of the right tensors first."""
    every = list(itertools.islice(layouts(array.shape, tensor.shape), 50))
    yield from [*(x for x in every if x in usual), *(x for x in every if x not in usual)][:MOST_LAYOUTS]


def _computed(values: Values, index: int, array: np.ndarray, among: Collection[int], matches: Matches) -> int | None:
    """Return the value of JAX, one of `among`, that the operation computes from the array; None if it computes none."""
    try:
        own = Fingerprint.of(values.again(index, array))
    except (RuntimeError, ValueError, IndexError, TypeError):  # PyTorch cannot compute with this array
        return None
    if not own.identifies:
        return None
    found = (
        n for n in among if matches.values[n].values.size == own.size and own.matches(matches.values[n].values.sums)
    )
    return next(found, None)
