"""Find values that are equal but in another order than PyTorch's: heads merged wrongly, an axis flipped."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from parity.trace.values.fingerprint import Fingerprint
from parity.trace.values.layout import SAME, Layout, closest
from parity.trace.values.match import Matches
from parity.trace.values.source import jax_line


@dataclasses.dataclass(frozen=True)
class Misplaced:
    """A value that JAX computes with, and the tensor that PyTorch computes with in its place.

    Both hold the same numbers in another order, or (`Difference.instead`) they are two different results.

    Attributes:
        number: Number of the value in JAX.
        array: The value, in the shape of PyTorch's tensor.
        wanted: PyTorch's tensor.
        layout: The layout in which the two are closest.
        once_right: Whether the numbers are in the right order in an earlier value of JAX.
        lines: Lines of the JAX code that rearrange the numbers.
    """

    number: int
    array: np.ndarray
    wanted: np.ndarray
    layout: Layout
    once_right: bool
    lines: tuple[str, ...]


def equal_numbers(wanted: np.ndarray, matches: Matches, before: int) -> list[int]:
    """Return the values of JAX with the numbers of `wanted` in any order that are computed before `before`."""
    values = Fingerprint.of(wanted)
    if not values.identifies:
        return []
    return [
        number
        for number, value in matches.values.items()
        if number < before and value.values.size == values.size and bool(values.matches(value.values.sums))
    ]


def misplaced(
    wanted: np.ndarray, numbers: Sequence[int], arrays: Mapping[int, np.ndarray], matches: Matches
) -> Misplaced | None:
    """Return the last value of JAX with the numbers of `wanted`, if they are in another order; None if they are not."""
    numbers = [number for number in numbers if arrays[number].size == wanted.size]  # not those without repetitions
    if not numbers:
        return None
    last = numbers[-1]
    best = closest(arrays[last], wanted)
    if best is not None and best[0] <= SAME:
        return None
    layout = Layout((wanted.size,), (0,), wanted.shape) if best is None else best[1]
    inside, once_right = [last], False
    for number in reversed(numbers[:-1]):
        inside.insert(0, number)
        found = closest(arrays[number], wanted)
        if found is not None and found[0] <= SAME:
            once_right = True
            break
    lines = [jax_line(matches.scopes[number]) for number in inside]
    array = arrays[last].reshape(wanted.shape)
    return Misplaced(last, array, wanted, layout, once_right, tuple(dict.fromkeys(line for line in lines if line)))
