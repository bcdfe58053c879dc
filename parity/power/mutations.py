"""The mistakes that can be made in one call of a module: the catalogue of `parity.causes`, one entry at a time.

A mistake is told by its words: (switch, text). The tensors that it takes are looked up anew wherever it is made, so that
the same mistake can be made on other inputs, in another precision, or in the running model, with its gradients.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from parity.causes.replay import Place, Recording, Step, tensors_of
from parity.causes.switches import generic, head_orders, part_orders, specific
from parity.causes.variant import Variant
from parity.power.extras import extra

Pool = list[tuple[str, torch.Tensor]]

SPECIFIC, GENERIC = "specific", "generic"
PHASES = (SPECIFIC, GENERIC)
"""What is mistaken for this very function; what can go wrong with any."""

MOST_HEADS = 64
RECENT = 3
"""So many results before a step may be taken for its operands."""

NOT_ON_VALUES = ("dropout", "alpha_dropout", "feature_dropout", "dropout1d", "dropout2d", "dropout3d")
"""Functions that do nothing in evaluation mode: see `parity.power.training`."""


@dataclasses.dataclass(frozen=True)
class Mutation:
    """One mistake in one module.

    Attributes:
        module: dotted path.
        switch, text: what is mistaken, as in `Cause`.
        inner: path of the inner module whose result is read otherwise; "" where a step is altered.
        place, name: the altered step: where it stands, and its function.
        phase, number: where in the catalogue: the `number`-th variant of the step.
        sizes: of the tensors around, from which the catalogue draws constants.
        rounding: the same function with other roundings.
    """

    module: str
    switch: str
    text: str
    inner: str = ""
    place: Place = ("", 0, 0)
    name: str = ""
    phase: str = SPECIFIC
    number: int = 0
    sizes: tuple[int, ...] = ()
    rounding: bool = False

    @property
    def words(self) -> tuple[str, str]:
        return self.switch, self.text

    @property
    def label(self) -> str:
        """The text with where it stands."""
        file, line, _ = self.place
        text = self.text if not self.name or self.name in self.text else f"{self.name}: {self.text}"
        return text + (f" ({file.rpartition('/')[2]}:{line})" if line else "")

    @property
    def only_in_gradients(self) -> bool:
        return "gradient" in self.switch

    def chosen(self, step: Step, pool: Pool) -> Variant | None:
        """The same mistake at this step: the one of the same words, else the one of the same number."""
        offered = variants(step, self.sizes, pool, self.phase)
        named = [v for v in offered if (v.switch, v.description) == self.words]
        if named:
            return named[0]
        same = offered[self.number] if self.number < len(offered) else None
        return same if same is not None and same.switch == self.switch else None

    def reordered(self, tree: Any) -> Any:
        """What the inner module returned, read otherwise; as it is if it cannot be."""
        for switch, text, other in _orders(tree, self.sizes):
            if (switch, f"{self.inner_name}: {text}") == self.words:
                return other
        return tree

    @property
    def inner_name(self) -> str:
        return _within(self.module, self.inner)


def _within(module: str, inner: str) -> str:
    return inner.removeprefix(f"{module}.") if module else inner


def variants(step: Step, sizes: Sequence[int], pool: Pool, phase: str) -> list[Variant]:
    """The catalogue at one step; nothing where an entry does not understand this way of calling the function."""
    if step.name in NOT_ON_VALUES:
        return []
    if phase == GENERIC:
        return [variant for variant in _safely(generic(step, pool)) if not _coarser(variant)]
    return [*_safely(specific(step, sizes)), *_safely(extra(step))]


def _coarser(variant: Variant) -> bool:
    """Rounding a step's result to float32 shows least; whoever sees that sees shorter formats too."""
    return "leak" in variant.switch and (variant.switch != "float32 leak" or variant.description.startswith("operand"))


def _safely(offered: Iterator[Variant]) -> list[Variant]:
    found: list[Variant] = []
    try:
        found.extend(offered)
    except (TypeError, ValueError, IndexError, AttributeError, RuntimeError, KeyError):
        pass
    return found


def _orders(tree: Any, sizes: Sequence[int]) -> Iterator[tuple[str, str, Any]]:
    yield from part_orders(tree)
    yield from head_orders(tree, [n for n in sizes if n <= MOST_HEADS])


def start_pool(
    module: torch.nn.Module, given: Any, inner: Mapping[str, Any], path: str
) -> Pool:
    """What is at hand when the call begins: its inputs, what inner modules return, its own tensors."""
    pool = [(f"input {i}", x) for i, x in enumerate(tensors_of(given))]
    for name, tree in inner.items():
        pool += [(f"the output of {_within(path, name)}", x) for x in tensors_of(tree)]
    own = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
    return pool + [(name, x) for name, x in own.items()]


def recent(results: Sequence[tuple[str, torch.Tensor]]) -> Pool:
    """The last few results before a step."""
    return list(results[-RECENT:])


def result_name(step: Step) -> str:
    return f"the result of {step.name}{step.where}"


def found(
    path: str, recording: Recording, steps: Sequence[Step], phase: str
) -> Iterator[tuple[Mutation, dict[str, Any]]]:
    """Every mistake of one phase in a recorded call, with the arguments of its replay."""
    sizes = tuple(sorted({n for step in steps for x in tensors_of((step.args, step.output)) for n in x.shape if n > 1}))
    if phase == SPECIFIC:
        yield from _found_inside(path, recording, sizes)
    base = start_pool(recording.module, (recording.args, recording.kwargs), _by_path(recording), path)
    results: list[tuple[str, torch.Tensor]] = []
    done: set[tuple[Place, str]] = set()
    for step in steps:
        if (step.place, step.name) not in done:
            done.add((step.place, step.name))
            for i, variant in enumerate(variants(step, sizes, [*base, *recent(results)], phase)):
                words = variant.switch, variant.description
                where = {"place": step.place, "name": step.name}
                mutation = Mutation(
                    path, *words, **where, phase=phase, number=i, sizes=sizes, rounding=variant.rounding
                )
                yield mutation, {"altered": (step.place, step.name), "alter": variant.alter}
        results += [(result_name(step), x) for x in tensors_of(step.output)[:1]]


def _by_path(recording: Recording) -> dict[str, Any]:
    """What each inner module returned, first call."""
    found: dict[str, Any] = {}
    for (name, _), tree in recording.inner.items():
        found.setdefault(name, tree)
    return found


def _found_inside(
    path: str, recording: Recording, sizes: tuple[int, ...]
) -> Iterator[tuple[Mutation, dict[str, Any]]]:
    for name, tree in _by_path(recording).items():
        calls = [key for key in recording.inner if key[0] == name]
        for switch, text, other in _orders(tree, sizes):
            mutation = Mutation(path, switch, f"{_within(path, name)}: {text}", inner=name, sizes=sizes)
            trees = {calls[0]: other} | {key: mutation.reordered(recording.inner[key]) for key in calls[1:]}
            yield mutation, {"inner": trees}
