"""Registry of causes: maps the name of a function to the mistakes commonly made with it.

To add a new mistake, write a generator next to similar ones (`values.py`, `layouts.py`, `attention.py`,
`positions.py`, `recurrent.py`, ...) and register it:

    @switches("leaky_relu")
    def slope(step: Step, around: Around) -> Iterator[Variant]:
        for value in (0.01, 0.2):
            yield given("activation", f"slope -> {value}", (1, "negative_slope"), value)

`step` is one call of that function as made by PyTorch; each `Variant` computes the step as JAX may have done. An entry
need not check whether its variants apply: each is replayed, and the one that reproduces JAX's values up to rounding is
the cause. A variant that PyTorch cannot run, or that raises, is skipped. The name "*" registers for every function.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from parity.causes.replay import Step, tensors_of
from parity.causes.variant import Variant

Named = tuple[str, torch.Tensor]
"""Description of a tensor, and the tensor."""


@dataclasses.dataclass(frozen=True)
class Around:
    """Context of a step.

    Attributes:
        steps: All steps of the module's call, in order.
        given: Inputs of the module, and outputs of its inner modules.
        own: Parameters and buffers of the module itself.
        sizes: Axis lengths of all these tensors.
        memory: Cache of `cached`.
    """

    steps: Sequence[Step] = ()
    given: Sequence[Named] = ()
    own: Mapping[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    sizes: Sequence[int] = ()
    memory: dict[str, Any] = dataclasses.field(default_factory=dict)

    def cached(self, name: str, function: Callable[[Around], Any]) -> Any:
        """Return `function(self)`, computed once per `name`."""
        if name not in self.memory:
            self.memory[name] = function(self)
        return self.memory[name]

    def before(self, step: Step) -> list[Named]:
        """Return all tensors available to the step: inputs, inner results, parameters, results of earlier steps."""
        index = self.index(step)
        results = [
            (f"the result of {s.name}{s.where}", x) for s in self.steps[:index] for x in tensors_of(s.output)[:3]
        ]
        return [*self.given, *self.own.items(), *results]

    def index(self, step: Step) -> int:
        return next((i for i, other in enumerate(self.steps) if other is step), len(self.steps))

    def same(self, step: Step) -> list[Step]:
        """Return the calls made at the same place, in order (a loop, a function called for q and for k)."""
        return [other for other in self.steps if (other.place, other.name) == (step.place, step.name)]

    def source(self, tensor: torch.Tensor, before: Step) -> Step | None:
        """Return the last step before `before` whose output is this tensor."""
        for other in reversed(self.steps[: self.index(before)]):
            found = other.output
            if isinstance(found, torch.Tensor) and found.shape == tensor.shape and torch.equal(found, tensor):
                return other
        return None

    @functools.cached_property
    def scored(self) -> frozenset[int]:
        """Indices of the steps that compute attention scores: sums, products and masks lead from them to a softmax."""
        ids = {i for i, step in enumerate(self.steps) if step.name in ("softmax", "scaled_dot_product_attention")}
        found: set[int] = set()
        wanted = [x for i in ids for x in tensors_of(self.steps[i].args)[:2]]
        for i in reversed(range(len(self.steps))):
            step = self.steps[i]
            if step.name in SCORES and any(_same(x, y) for x in tensors_of(step.output)[:1] for y in wanted):
                found.add(i)
                wanted += tensors_of(step.args)
        return frozenset(found)


SCORES = frozenset(
    (
        *("matmul", "rmatmul", "bmm", "baddbmm", "einsum", "mul", "rmul", "div", "true_divide", "add", "sub"),
        *("masked_fill", "where", "transpose", "permute", "reshape", "view", "unsqueeze", "squeeze", "expand"),
        *("unflatten", "flatten", "contiguous", "float", "double", "to", "type"),
    )
)
"""Functions that may occur between queries and keys and the softmax."""


def _same(x: torch.Tensor, y: torch.Tensor) -> bool:
    return x.shape == y.shape and x.dtype == y.dtype and torch.equal(x, y)


Entry = Callable[[Step, Around], Iterator[Variant]]

ENTRIES: dict[str, list[Entry]] = {}
"""Function name -> entries that yield its mistakes."""


def switches(*names: str) -> Callable[[Entry], Entry]:
    """Register a catalogue entry for the functions with these names."""

    def register(entry: Entry) -> Entry:
        for name in names:
            ENTRIES.setdefault(name, []).append(entry)
        return entry

    return register


UNREADABLE = (TypeError, ValueError, IndexError, AttributeError, RuntimeError, KeyError, NotImplementedError)


def variants(step: Step, around: Around) -> list[Variant]:
    """Return all variants of a step, skipping entries that cannot handle this way of calling the function."""
    found: list[Variant] = []
    for entry in [*ENTRIES.get(step.name, []), *ENTRIES.get("*", [])]:
        try:
            found += list(entry(step, around))
        except UNREADABLE:
            continue
    return found
