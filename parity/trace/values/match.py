"""Match the operations of a PyTorch model with the values of a JAX program, by fingerprint."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from parity.precision.jax_casts import Scope
from parity.trace.values.fingerprint import Fingerprint
from parity.trace.values.jax_values import SAME_VALUES, Step, run, run_held
from parity.trace.values.layout import Layout
from parity.trace.values.program import Program
from parity.trace.values.torch_operations import ModuleCall, TorchTrace


@dataclasses.dataclass(frozen=True)
class Value:
    """A value of the JAX program whose size also occurs in PyTorch: its place, shape and fingerprint."""

    eqn: Any
    shape: tuple[int, ...]
    values: Fingerprint

    @property
    def rearranges(self) -> bool:
        """Whether the equation only rearranges the elements of its operand."""
        return self.eqn.primitive.name in SAME_VALUES


Replaced = Mapping[int, tuple[np.ndarray, Layout]]
"""Number of a value of JAX -> PyTorch's array to put in its place, and its layout in JAX."""


@dataclasses.dataclass(frozen=True)
class Matches:
    """Which values of a JAX program are results of PyTorch's operations.

    Attributes:
        values: The values of JAX by number, those whose size occurs in PyTorch.
        scopes: For every number, where its equation is in the source code.
        inputs: For every number, those that it was computed from.
        operations: For every operation of PyTorch, the numbers of the equal values of JAX.
        outputs: The same for every output of every module call.
        returned: Numbers of what the program returns.
    """

    values: Mapping[int, Value]
    scopes: Sequence[Scope]
    inputs: Sequence[frozenset[int]]
    operations: Sequence[Sequence[int]]
    outputs: Mapping[tuple[Any, int], Sequence[int]]
    returned: Sequence[int] = ()

    def descend(self, numbers: Collection[int]) -> set[int]:
        """Return everything that was computed from the values `numbers`, and these."""
        found = set(numbers)
        for number, sources in enumerate(self.inputs):
            if not found.isdisjoint(sources):
                found.add(number)
        return found


class Targets:
    """Fingerprints to look for, by size."""

    def __init__(self, prints: Sequence[Fingerprint]) -> None:
        by_size: dict[int, list[int]] = {}
        for i, values in enumerate(prints):
            if values.identifies:
                by_size.setdefault(values.size, []).append(i)
        self.prints = prints
        self.by_size = {size: (found, np.stack([prints[i].sums for i in found])) for size, found in by_size.items()}
        self.sizes = {values.size for values in prints}

    def may_hold(self, shape: tuple[int, ...]) -> bool:
        """Return whether an array of this shape has a wanted size, possibly without repetitions along some axes."""
        reachable = {1}
        for n in shape:
            reachable |= {size * n for size in reachable}
        return max(reachable) > 1 and not reachable.isdisjoint(self.sizes)

    def equal(self, values: Fingerprint) -> list[int]:
        """Return the targets with the same values."""
        if values.size not in self.by_size or not values.identifies:
            return []
        indices, sums = self.by_size[values.size]
        return [indices[int(i)] for i in np.flatnonzero(values.matches(sums))]


def match(trace: TorchTrace, program: Program, replaced: Replaced) -> Matches:
    """Run the JAX program with some values replaced by PyTorch's, and match its values."""
    outputs = [(call.key, i) for call in trace.calls for i in range(len(call.outputs))]
    prints = [op.values for op in trace.operations] + [x.values for call in trace.calls for x in call.outputs]
    targets = Targets(prints)
    found: list[list[int]] = [[] for _ in prints]
    values: dict[int, Value] = {}
    scopes: list[Scope] = []
    inputs: list[frozenset[int]] = []

    def seen(step: Step) -> Any:
        scopes.append(step.scope)
        inputs.append(step.inputs)
        if not jnp.issubdtype(step.array.dtype, jnp.floating):
            return None
        new = replaced.get(step.number)
        array = np.asarray(step.array) if new is None else new[1].to_jax(new[0], step.array.shape)
        if targets.may_hold(array.shape):
            values[step.number] = value = Value(step.eqn, array.shape, Fingerprint.of(array))
            for i in targets.equal(value.values):
                found[i].append(step.number)
        return None if new is None else array

    held = run_held(program.closed, program.arguments, seen)
    count = len(trace.operations)
    returned = tuple(number for x in held for number in x.by if len(x.by) == 1)
    return Matches(values, scopes, inputs, found[:count], dict(zip(outputs, found[count:], strict=True)), returned)


def captured(program: Program, replaced: Replaced, numbers: Collection[int]) -> dict[int, np.ndarray]:
    """Run the program and return the values with these numbers."""
    found: dict[int, np.ndarray] = {}

    def seen(step: Step) -> Any:
        new = replaced.get(step.number)
        array = None if new is None else new[1].to_jax(new[0], step.array.shape)
        if step.number in numbers:
            found[step.number] = np.asarray(step.array, np.float64) if array is None else array
        return array

    run(program.closed, program.arguments, seen)
    return found


def located(call: ModuleCall, matches: Matches) -> list[int] | None:
    """Return the number of a value of JAX for every output of a module call; None if one is missing."""
    found = [matches.outputs[call.key, i] for i in range(len(call.outputs))]
    return [numbers[0] for numbers in found] if found and all(found) else None
