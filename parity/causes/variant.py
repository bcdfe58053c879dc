"""A switch at one step of a replay, and helpers to create one."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal

from parity.causes.replay import Alter

Argument = tuple[int, str]
"""Position and keyword of an argument."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """A computation that JAX may perform in place of one step.

    Attributes:
        switch: Kind of mistake, from a fixed vocabulary.
        description: What PyTorch does -> what JAX would do.
        alter: Function that computes the step as JAX would.
        rounding: "" if another value is computed, which must equal JAX's up to rounding. Otherwise the same value is
            computed with other roundings, recognized by "elements" (errors agree element by element) or by "rows" (the
            errors of each row have the same direction): see `parity.causes.precision.rounding`.
        family: Function that makes `alter` from a positive number, fitted from `start`; "{value}" in the description.
        start: Initial value of the fit.
    """

    switch: str
    description: str
    alter: Alter
    rounding: Literal["", "elements", "rows"] = ""
    family: Callable[[float], Alter] | None = None
    start: float = 0.0


def given(switch: str, text: str, argument: Argument, value: Any) -> Variant:
    """Return a variant with another value for one argument."""
    return Variant(switch, text, lambda step: step.run({argument: value}))


def changed(switch: str, text: str, argument: Argument, change: Callable[..., Any]) -> Variant:
    """Return a variant with `change` applied to one argument."""
    return Variant(switch, text, lambda step: step.run({argument: change(step.get(*argument))}))


def result(switch: str, text: str, change: Callable[..., Any]) -> Variant:
    """Return a variant with `change` applied to the result."""
    return Variant(switch, text, lambda step: change(step.run()))


def replaced(switch: str, text: str, function: Callable[..., Any]) -> Variant:
    """Return a variant that computes another function of the step's first argument."""
    return Variant(switch, text, lambda step: function(step.get(0, "input")))


def orders(count: int) -> list[tuple[int, ...]]:
    """Return all orders of `count` items except the identity; for more than three, only the reversed one."""
    return list(itertools.permutations(range(count)))[1:] if count <= 3 else [tuple(reversed(range(count)))]


def choices(count: int) -> list[tuple[int, ...]]:
    """As `orders`; for two or three items also those in which one item is taken twice."""
    every = list(itertools.product(range(count), repeat=count))[1:] if count <= 3 else []
    twice = [c for c in every if len(set(c)) == count - 1]
    return [*orders(count), *twice]


def picked(parts: Sequence[Any], order: Sequence[int]) -> tuple[Any, ...]:
    return tuple(parts[i] for i in order)


def family(switch: str, text: str, start: float, function: Callable[..., Any]) -> Variant:
    """Return a variant with an unknown constant: `function` of the step and the constant."""
    make = lambda number: lambda step: function(step, number)  # noqa: E731
    return Variant(switch, text, make(start), family=make, start=start)
