"""Collective operations of a compiled program, parsed from its HLO text."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all", "collective-broadcast")

_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (\([^=]*?\)|\S+) ([a-z][\w\-]*)\((.*)$", re.MULTILINE)
_COMMENT = re.compile(r"/\*.*?\*/")  # index comment of every fifth element of a long tuple
_SHAPE = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$", re.MULTILINE)
_CALLED = re.compile(r"\b(?:\w+_computations?|calls|to_apply|body|condition)=\{?((?:%[\w.\-]+(?:, )?)+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Shape:
    """Dtype, as spelled in HLO (f32, bf16, s32, ...), and dimensions of one array."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Size in bytes without padding; 0 for tokens and other types that are not arrays."""
        found = re.fullmatch(r"([a-z]+?)(\d*)", self.dtype)
        if self.dtype == "pred":
            return math.prod(self.dims)
        return math.prod(self.dims) * int(found[2]) // 8 if found and found[2] else 0


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One HLO instruction."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    """Shapes of the result; several for a tuple."""
    channel: str | None
    """Channel of the collective that it is part of, if any."""
    times: int = 1
    """Number of executions: more than one in a loop."""


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective operation, i.e. communication between devices."""

    kind: str
    shapes: tuple[Shape, ...]
    """Shapes of the result on every device."""
    times: int = 1
    """Number of executions."""

    @property
    def num_bytes(self) -> int:
        """Size in bytes of one execution."""
        return sum(shape.num_bytes for shape in self.shapes)


def instructions(hlo: str) -> Iterator[Instruction]:
    """Iterate over the instructions of all computations in the text of an HLO module."""
    hlo = _COMMENT.sub("", hlo)
    times = _times(hlo)
    for computation, body in _computations(hlo):
        for found in _INSTRUCTION.finditer(body):
            name, result, opcode, rest = found.groups()
            channel = _CHANNEL.search(rest)
            yield Instruction(name, opcode, _shapes(result), channel[1] if channel else None, times(computation))


def _computations(hlo: str) -> Iterator[tuple[str, str]]:
    """Iterate over the names and texts of all computations."""
    _, *parts = _COMPUTATION.split(hlo)
    yield from zip(parts[::2], parts[1::2], strict=True)


def _times(hlo: str) -> Callable[[str], int]:
    """Return a function: computation name -> number of executions, as far as the compiler knows the trip counts."""
    callers: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for computation, body in _computations(hlo):
        for line in body.splitlines():
            trips = _TRIPS.search(line)
            for called in _CALLED.findall(line):
                for name in called.replace("%", "").split(", "):
                    callers[name].append((computation, int(trips[1]) if trips else 1))

    @functools.cache
    def times(computation: str) -> int:
        return max((factor * times(caller) for caller, factor in callers[computation]), default=1)

    return times


def _shapes(text: str) -> tuple[Shape, ...]:
    return tuple(
        Shape(dtype, tuple(int(size) for size in dims.split(",") if size)) for dtype, dims in _SHAPE.findall(text)
    )


def collectives(hlo: str) -> list[Collective]:
    """Return all collectives; for asynchronous ones (start and done), `shapes` has the result only.

    A collective that the compiler splits to overlap it with several fusions appears in each of them with the same
    channel and shapes, and is counted once.
    """
    found: dict[tuple[str, tuple[Shape, ...], str], Collective] = {}
    for instruction in instructions(hlo):
        kind = instruction.opcode.removesuffix("-start")
        if kind not in COLLECTIVES:
            continue
        shapes = instruction.shapes
        if instruction.opcode.endswith("-start") and kind != "all-reduce":
            shapes = _results(shapes)
        message = Collective(kind, shapes, instruction.times)
        found[kind, shapes, instruction.channel or instruction.name] = message
    return list(found.values())


def _results(shapes: tuple[Shape, ...]) -> tuple[Shape, ...]:
    """Return the results of a tuple (operands, results, contexts), whose contexts are scalars."""
    arrays = tuple(shape for shape in shapes if shape.dims)
    return arrays[len(arrays) // 2 :]


def carry_batch(found: Iterable[Collective], batch_size: int, own: Iterable[tuple[int, ...]] = ()) -> list[Collective]:
    """Return the collectives with an axis of the global batch size, ignoring arrays with a shape in `own`.

    Args:
        found: Collectives to search.
        batch_size: Batch size over all devices.
        own: Shapes of parameters and their shards, which may have an axis of this size by coincidence.
    """
    parameters = {tuple(sorted(dims)) for dims in own}
    return [
        message
        for message in found
        if any(batch_size in shape.dims and tuple(sorted(shape.dims)) not in parameters for shape in message.shapes)
    ]


def bytes_by_kind(found: Iterable[Collective]) -> dict[str, tuple[int, int]]:
    """Return, for each kind of collective, the number of executions and their total bytes on one device."""
    totals: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for message in found:
        totals[message.kind][0] += message.times
        totals[message.kind][1] += message.times * message.num_bytes
    return {kind: (count, size) for kind, (count, size) in sorted(totals.items())}
