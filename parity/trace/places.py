"""Which module is at fault for a difference: the one that computes it, the one that made its input, or the caller."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from parity.measure.gates import rel_f
from parity.recording.capture import ROOT
from parity.trace.difference import Difference, all_equal
from parity.trace.order import Misplaced
from parity.trace.regions import outermost, receiver, returned
from parity.trace.values.fingerprint import Fingerprint
from parity.trace.values.layout import closest
from parity.trace.values.match import Matches
from parity.trace.values.source import Calls, calls
from parity.trace.values.torch_operations import ModuleCall, Tensor, TorchTrace


@dataclasses.dataclass(frozen=True)
class Place:
    """A wrong tensor: an input of a module (`into`), which its caller computed, or an output.

    `value` and `right` are the value of JAX and PyTorch's in one layout; None if JAX has no such value. `tensor` is the
    input or output; None if it is a result in between.
    """

    call: ModuleCall
    into: bool
    tensor: Tensor | None
    value: np.ndarray | None
    right: np.ndarray

    @property
    def error(self) -> float:
        return math.inf if self.value is None else rel_f(self.value, self.right)

    def as_in(self, tensor: np.ndarray) -> np.ndarray:
        """Return the value in the layout in which the right value is `tensor`: a view of it."""
        view = closest(self.right, tensor)
        assert self.value is not None, "a value that JAX lacks has no layout"
        return self.value.reshape(tensor.shape) if view is None else view[1].to_torch(self.value)


def places(trace: TorchTrace, difference: Difference) -> Iterator[Place]:
    """Yield the tensors of modules that are wrong because of a difference."""
    region, order = difference.region, difference.misplaced or difference.instead
    owner = next((call for call in trace.calls if call.key == region.owner), None)
    found = None if order is None or owner is None else _given(trace, difference, owner, order)
    if found is not None:
        yield found
        return
    for end in region.ends:
        best = difference.best(end)
        value = None if best is None else best.array
        out, into = returned(trace, region, end), receiver(trace, region, end)
        if out is not None:
            yield Place(out[0], False, out[1], value, difference.wanted[end])
        elif into is not None:
            yield Place(into[0], True, into[1], value, difference.wanted[end])
        elif owner is not None:
            yield Place(owner, False, None, value, difference.wanted[end])


def _given(trace: TorchTrace, difference: Difference, owner: ModuleCall, order: Misplaced) -> Place | None:
    """Return the place of a wrong value that the region's owner is given; None if the owner itself computes it."""
    matches, values = difference.matches, Fingerprint.of(order.wanted)
    makers = _makers(trace, difference, order)
    chosen = difference.instead is not None and order.number in all_equal(matches)  # another right value
    if difference.instead is not None and _used_rightly(trace, difference, values):
        return None
    for call, tensor in () if chosen else makers:
        if _inside(call, order.number, matches, trace):
            return Place(call, False, tensor, order.array, order.wanted)
    taken = [x for x in owner.inputs if x.values.size == values.size and values.matches(x.values.sums)]
    if owner.key == ROOT or not taken:
        return None
    if difference.misplaced and not order.once_right:
        for call, tensor in makers:
            if tensor.operations == taken[0].operations and tensor.shape == taken[0].shape:
                return Place(call, False, tensor, order.array, order.wanted)
    call, tensor = outermost(trace, owner, taken[0])
    return Place(call, True, tensor, order.array, order.wanted)


def _makers(trace: TorchTrace, difference: Difference, order: Misplaced) -> list[tuple[ModuleCall, Tensor]]:
    """Return the module calls that return the right tensor, inner ones first; those of its shape before the others."""
    first, values = difference.region.operations[0], Fingerprint.of(order.wanted)
    found = [
        (call, tensor)
        for call in trace.calls
        for tensor in (call.outputs if call.operations.stop <= first and call.key[0] else ())
        if tensor.values.size == values.size and bool(values.matches(tensor.values.sums))
    ]
    flat = order.wanted.shape[-1:]
    return sorted(found, key=lambda x: x[1].shape != order.wanted.shape and x[1].shape[-1:] != flat)


def _used_rightly(trace: TorchTrace, difference: Difference, values: Fingerprint) -> bool:
    """Return whether another operation of PyTorch computes with the same tensor, and JAX has its result."""
    users, inside = trace.users(), difference.region.operations
    sources = [
        i
        for i in trace.operations[inside[0]].inputs
        if trace.operations[i].values.size == values.size and values.matches(trace.operations[i].values.sums)
    ]
    return any(difference.matches.operations[user] for i in sources for user in users[i] if user not in inside)


def _inside(call: ModuleCall, number: int, matches: Matches, trace: TorchTrace) -> bool:
    """Return whether the code that computes a value is called where JAX computes a module, rather than outside.

    The functions that are running are compared: the value has more of them in common with what is inside the module
    than with anything outside and with what uses it. In a port that is a single function, nothing is inside.
    """
    own = calls(matches.scopes[number])
    first = {i: calls(matches.scopes[found[0]]) for i, found in enumerate(matches.operations) if found}
    within = [_common(own, other) for i, other in first.items() if i in call.operations]
    outside = [_common(own, other) for i, other in first.items() if i not in call.operations]
    outside += [_common(own, calls(matches.scopes[n])) for n in _users(number, matches)]
    return max(within, default=0) > max(outside, default=0)


def _users(number: int, matches: Matches) -> list[int]:
    """Return the values that are computed from a value, or from the same numbers in another layout or format."""
    same, found = {number}, []
    own = matches.values[number].values
    for n, inputs in enumerate(matches.inputs):
        if same.isdisjoint(inputs):
            continue
        value = matches.values.get(n)
        if value is not None and value.values.size == own.size and bool(own.matches(value.values.sums)):
            same.add(n)
        else:
            found.append(n)
    return found


def _common(one: Calls, other: Calls) -> int:
    """Return how many functions, from the outermost on, two values have in common."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count
