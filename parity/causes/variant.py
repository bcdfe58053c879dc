"""A switch at one step of a replay, and the two usual ways to make one."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal

from parity.causes.replay import Alter

Argument = tuple[int, str]
"""Where a function takes an argument: its position and its keyword."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """What JAX may compute in place of one step.

    Attributes:
        switch: the kind of mistake, from a fixed vocabulary.
        description: what PyTorch does -> what JAX would be doing.
        alter: computes the step as JAX would.
        rounding: "": it computes another value, which has to be JAX's to the last digits. Else the same value with
            other roundings, recognised by "elements" (they err alike, one by one) or by "rows" (the error of each row
            has the same direction): see `parity.causes.precision.rounding`.
        family: makes `alter` from a positive number, which is looked for from `start`; the description's "{value}".
    """

    switch: str
    description: str
    alter: Alter
    rounding: Literal["", "elements", "rows"] = ""
    family: Callable[[float], Alter] | None = None
    start: float = 0.0


def given(switch: str, text: str, argument: Argument, value: Any) -> Variant:
    """The step with another value for one argument."""
    return Variant(switch, text, lambda step: step.run({argument: value}))


def changed(switch: str, text: str, argument: Argument, change: Callable[..., Any]) -> Variant:
    """The step with one argument changed."""
    return Variant(switch, text, lambda step: step.run({argument: change(step.get(*argument))}))


def result(switch: str, text: str, change: Callable[..., Any]) -> Variant:
    """The step with its result changed."""
    return Variant(switch, text, lambda step: change(step.run()))


def replaced(switch: str, text: str, function: Callable[..., Any]) -> Variant:
    """Another function of the step's first argument."""
    return Variant(switch, text, lambda step: function(step.get(0, "input")))


def orders(count: int) -> list[tuple[int, ...]]:
    """All orders of up to three things but the first; of more, the reversed one."""
    return list(itertools.permutations(range(count)))[1:] if count <= 3 else [tuple(reversed(range(count)))]


def choices(count: int) -> list[tuple[int, ...]]:
    """The same, and of two or three things those where one is taken twice."""
    every = list(itertools.product(range(count), repeat=count))[1:] if count <= 3 else []
    twice = [c for c in every if len(set(c)) == count - 1]
    return [*orders(count), *twice]


def picked(parts: Sequence[Any], order: Sequence[int]) -> tuple[Any, ...]:
    return tuple(parts[i] for i in order)


def family(switch: str, text: str, start: float, function: Callable[..., Any]) -> Variant:
    """The step with a constant that is not known: `function` of the step and the constant."""
    make = lambda number: lambda step: function(step, number)  # noqa: E731
    return Variant(switch, text, make(start), family=make, start=start)
