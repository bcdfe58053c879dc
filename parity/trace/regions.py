"""Find where values first differ: the operations of PyTorch that have no partner in JAX though their inputs have."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator

from parity.recording.capture import ROOT, Key
from parity.trace.values.match import Matches
from parity.trace.values.torch_operations import ModuleCall, Tensor, TorchTrace


@dataclasses.dataclass(frozen=True)
class Region:
    """Consecutive operations of one module whose results differ, although what they are computed from is equal.

    Attributes:
        owner: Call of the module that runs them.
        operations: The operations whose results are missing in JAX, in order.
        ends: Those that are used after the region: by another module, or as a result.
        known: Numbers of the equal values in JAX that the region is computed from.
    """

    owner: Key
    operations: tuple[int, ...]
    ends: tuple[int, ...]
    known: frozenset[int]


def missing(trace: TorchTrace, matches: Matches) -> set[int]:
    """Return the operations whose results differ in JAX.

    A result that JAX does not compute, but from which an equal result follows, is not missing: JAX computes the same in
    other steps. Results that do not lead to the model's output do not count.
    """
    users = trace.users()
    follows, wrong = set[int](), set[int]()
    alive = _leading_to_outputs(trace)
    for i in reversed(range(len(trace.operations))):
        if matches.operations[i] or any(user in follows for user in users[i]):
            follows.add(i)
        elif i in alive and trace.operations[i].values.identifies:
            wrong.add(i)
    return wrong


def _leading_to_outputs(trace: TorchTrace) -> set[int]:
    root = next(call for call in trace.calls if call.key == ROOT)
    found = {i for tensor in root.outputs for i in tensor.operations}
    for i in reversed(range(len(trace.operations))):
        if i in found:
            found |= trace.operations[i].inputs
    return found


def first_regions(trace: TorchTrace, matches: Matches, absent: Collection[int] = ()) -> list[Region]:
    """Return the regions in which values first differ: nothing that they are computed from is missing.

    `absent` are operations that JAX does not have; those that use their results are looked at in their place.
    """
    wrong = missing(trace, matches) - set(absent)
    behind = set[int]()  # operations that are computed from a missing one
    for i, operation in enumerate(trace.operations):
        if any(source in wrong or source in behind for source in operation.inputs):
            behind.add(i)
    found: list[Region] = []
    taken = set[int]()
    for i in sorted(wrong - behind):
        if i not in taken:
            found.append(_region(trace, matches, i, wrong))
            taken.update(found[-1].operations)
    return found


def _region(trace: TorchTrace, matches: Matches, start: int, wrong: set[int]) -> Region:
    owner = trace.operations[start].owner
    inside = []
    for i in range(start, len(trace.operations)):
        if trace.operations[i].owner != owner:
            break
        if i in wrong:
            inside.append(i)
    users, outputs = trace.users(), {i for c in trace.calls if c.key == ROOT for x in c.outputs for i in x.operations}
    ends = [i for i in inside if i in outputs or any(user not in inside for user in users[i])]
    return Region(owner, tuple(inside), tuple(ends), known_behind(trace, matches, inside))


def known_behind(trace: TorchTrace, matches: Matches, operations: Collection[int]) -> frozenset[int]:
    """Return the values of JAX that the operations are computed from, also through results that JAX does not have."""
    found, seen = set[int](), set(operations)
    waiting = [j for i in operations for j in trace.operations[i].inputs]
    while waiting:
        i = waiting.pop()
        if i in seen:
            continue
        seen.add(i)
        if matches.operations[i]:
            found.add(matches.operations[i][0])
        else:
            waiting.extend(trace.operations[i].inputs)
    return frozenset(found)


def receiver(trace: TorchTrace, region: Region, end: int) -> tuple[ModuleCall, Tensor] | None:
    """Return the first module call that takes the result of `end`, and the input that it is; None if there is none.

    Only calls made by the owner of the region count, after the operation: of modules that begin with the same
    operation, the outermost, which passes the tensor on to the others.
    """
    size = trace.operations[end].values.size
    calls = sorted(_called_by(trace, region.owner), key=lambda call: (call.operations.start, -call.operations.stop))
    for call in calls:
        for tensor in call.inputs:
            if call.operations.start > end and end in tensor.operations and tensor.values.size == size:
                return call, tensor
    return None


def _called_by(trace: TorchTrace, owner: Key) -> Iterator[ModuleCall]:
    """Yield the calls of modules inside `owner`'s module during its call."""
    around = next((call for call in trace.calls if call.key == owner), None)
    for call in trace.calls:
        inside = around is None or (
            around.operations.start <= call.operations.start and call.operations.stop <= around.operations.stop
        )
        if inside and call.key != owner and call.key[0].startswith(f"{owner[0]}." if owner[0] else ""):
            yield call


def outermost(trace: TorchTrace, call: ModuleCall, tensor: Tensor) -> tuple[ModuleCall, Tensor]:
    """Return the outermost module that takes this tensor and passes it to `call`, and the input that it is.

    The module that calls it computed the tensor, or chose it.
    """
    found, given = call, tensor
    for around in trace.calls:
        inside = around.operations.start <= call.operations.start and call.operations.stop <= around.operations.stop
        if around.key == ROOT or not inside or len(around.operations) < len(found.operations):
            continue
        same = (x for x in around.inputs if x.operations == tensor.operations and x.values.size == tensor.values.size)
        if (own := next(same, None)) is not None:
            found, given = around, own
    return found, given


def returned(trace: TorchTrace, region: Region, end: int) -> tuple[ModuleCall, Tensor] | None:
    """Return the call that owns the region, and the output that the result of `end` is; None if it is none."""
    call = next((call for call in trace.calls if call.key == region.owner), None)
    if call is None:
        return None
    found = next((tensor for tensor in call.outputs if end in tensor.operations), None)
    return None if found is None else (call, found)


def caller(trace: TorchTrace, key: Key) -> str:
    """Return the path of the module that calls a module: the innermost around it that is called itself."""
    called = {call.key[0] for call in trace.calls}
    path = key[0].rpartition(".")[0]
    while path and path not in called:  # a ModuleList is not called
        path = path.rpartition(".")[0]
    return path


def name(key: Key) -> str:
    """Return the name of a call: the module's path, with the number of the call if it is not the first."""
    path, number = key
    return path if number == 0 else f"{path}#{number + 1}"
