"""All single changes of a module's arithmetic to try, the most specific first."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Literal

import torch

from parity.causes.catalogue import variants
from parity.causes.generic import generic, head_orders, part_orders
from parity.causes.registry import Around, Named
from parity.causes.replay import Alter, Alterations, Recording, Step, tensors_of
from parity.causes.variant import Variant
from parity.recording.capture import Key

MANY = 6
"""Maximum number of calls at one place that are also altered one by one (a function called for q and for k)."""

TELLING = ("rotary embedding", "sinusoid")
"""Switches tried first: more specific than the same mistake reported for one of their constituent steps."""

HEADS = 64
"""Maximum number of heads into which a fused projection is split."""


@dataclasses.dataclass(frozen=True)
class Change:
    """A change to replay.

    Attributes:
        switch, text: Kind of mistake and description, as reported.
        alterations, inner: Arguments of `Recording.run`.
        rounding: See `Variant`.
        family: Function that makes the alteration from an unknown constant, which is fitted from `start`.
        step: Index of the altered step; -1 if none.
        named: Whether the change comes from the catalogue entry of the step's function.
    """

    switch: str
    text: str
    alterations: Alterations = ()
    inner: Mapping[Key, Any] | None = None
    rounding: Literal["", "elements", "rows"] = ""
    family: Callable[[float], Alter] | None = None
    start: float = 0.0
    step: int = -1
    named: bool = False

    @property
    def exchanges(self) -> bool:
        """Whether the change exchanges the results of two inner modules.

        If this explains only one of several tensors, the cause may be another that gives the other module's value, such
        as a norm after the sum in place of before it.
        """
        return self.inner is not None and len(self.inner) == 2


def around(recording: Recording, steps: list[Step]) -> Around:
    """Return the context of a recording's steps; names of inner modules are relative to the module."""
    given = [(f"input {i}", x) for i, x in enumerate(tensors_of((recording.args, recording.kwargs)))]
    for (path, _), tree in recording.inner.items():
        given += [(f"the output of {recording.relative(path)}", x) for x in tensors_of(tree)]
    own = {name: x.detach() for name, x in recording.own().items()}
    every = [*given, *own.items(), *(("", x) for s in steps for x in tensors_of((s.args, s.kwargs, s.output)))]
    sizes = sorted({n for _, x in every for n in x.shape if n > 1})
    return Around(steps, given, own, sizes)


def changes(recording: Recording, here: Around, within: Collection[str] | None = None) -> Iterator[Change]:
    """Yield all single changes; each step represents all calls at its place.

    With `within`, only steps of these modules are changed.
    """
    steps = [step for step in here.steps if within is None or step.module in within]
    first = list({(step.place, step.name): step for step in reversed(steps)}.values())[::-1]
    own = list(here.own.values())
    yield from _inner(recording, part_orders)
    yield from _exchanged(recording)
    many = MANY if within is None else math.inf
    repeated = [(step, variants(step, here)) for step in steps if 1 < len(here.same(step)) <= many]
    named = [(step, variants(step, here)) for step in first]
    fits = [(step, v) for step, found in named for v in found if v.family]
    exact = [(step, v) for step, found in named for v in found if not v.rounding and not v.family]
    yield from (dataclasses.replace(_altered(here, step, v), named=True) for step, v in exact if v.switch in TELLING)
    for step, found in repeated:
        yield from (_altered(here, step, v, alone=True) for v in found if v.switch in TELLING and not v.family)
    yield from (
        dataclasses.replace(_altered(here, step, v), named=True) for step, v in exact if v.switch not in TELLING
    )
    yield from _inner(recording, lambda tree: head_orders(tree, [n for n in here.sizes if n <= HEADS]))
    rounded = [(step, v) for step, found in named for v in found if v.rounding]
    for step in first:
        found = _safely(generic(step, _pool(here, step, within), own))
        rounded += [(step, v) for v in found if v.rounding]
        yield from (_altered(here, step, v) for v in found if not v.rounding)
    for step, found in repeated:
        rest = [v for v in found if v.switch not in TELLING] + _safely(generic(step, _pool(here, step, within), own))
        yield from (_altered(here, step, v, alone=True) for v in rest if not v.rounding and not v.family)
    yield from (_altered(here, step, v) for step, v in fits if v.switch in TELLING)
    yield from (_altered(here, step, v) for step, v in fits if v.switch not in TELLING)
    yield from (_altered(here, step, v) for step, v in rounded)


NEAR = 24
"""Number of earlier results that are tried as an operand in a search in the whole model."""


def _pool(here: Around, step: Step, within: Collection[str] | None) -> list[Named]:
    every = here.before(step)
    return every if within is None else every[-NEAR:]


def _altered(here: Around, step: Step, variant: Variant, *, alone: bool = False) -> Change:
    text = variant.description if step.name in variant.description else f"{step.name}: {variant.description}"
    if alone:
        text += f", call {step.occurrence + 1} of {len(here.same(step))}"
    target = (step.place, step.name, step.occurrence if alone else None)
    return Change(
        variant.switch,
        text + step.where,
        ((target, variant.alter),),
        rounding=variant.rounding,
        family=variant.family,
        start=variant.start,
        step=here.index(step),
    )


def _safely(found: Iterator[Variant]) -> list[Variant]:
    try:
        return list(found)
    except (TypeError, ValueError, IndexError, AttributeError, RuntimeError, KeyError):
        return []


def _inner(recording: Recording, orders: Callable[[Any], Iterator[tuple[str, str, Any]]]) -> Iterator[Change]:
    """Yield changes that read the channels of an inner module's output in another order."""
    for (path, index), tree in recording.inner.items():
        for switch, text, other in orders(tree):
            yield Change(switch, f"{recording.relative(path)}: {text}", inner={(path, index): other})


def _exchanged(recording: Recording) -> Iterator[Change]:
    """Yield changes that exchange the outputs of two inner modules (gate and up, k and v)."""
    keys = list(recording.inner)[:16]
    for a, b in itertools.combinations(keys, 2):
        one, two = recording.inner[a], recording.inner[b]
        if a[0] == b[0] or not (isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor)):
            continue
        if any(_same(recording.inner[key], x) for key in keys if key not in (a, b) for x in (one, two)):
            continue  # a dropout in eval mode returns its input: the two modules cannot be distinguished
        if one.shape == two.shape and one.dtype == two.dtype and not torch.equal(one, two):
            names = recording.relative(a[0]), recording.relative(b[0])
            alike = [key for key in keys if getattr(recording.inner[key], "shape", None) == one.shape]
            switch = "q/k/v order" if len(alike) == 3 and _scored(recording) else "branches exchanged"
            yield Change(switch, f"the outputs of {names[0]} and {names[1]} exchanged", inner={a: two, b: one})


def _same(tree: Any, x: torch.Tensor) -> bool:
    return isinstance(tree, torch.Tensor) and tree.shape == x.shape and torch.equal(tree, x)


def _scored(recording: Recording) -> bool:
    """Return whether the module's own arithmetic contains a softmax, which indicates attention."""
    return recording.scored
