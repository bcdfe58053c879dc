"""The messages between devices of a compiled program, read from its HLO text."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all", "collective-broadcast")

_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (\([^=]*?\)|\S+) ([a-z][\w\-]*)\((.*)$", re.MULTILINE)
_COMMENT = re.compile(r"/\*.*?\*/")  # numbers every fifth array of a long tuple
_SHAPE = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$", re.MULTILINE)
_CALLED = re.compile(r"\b(?:\w+_computations?|calls|to_apply|body|condition)=\{?((?:%[\w.\-]+(?:, )?)+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Shape:
    """dtype in HLO's spelling (f32, bf16, s32, ...) and sizes of one array."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes without padding; 0 for tokens and what is no array."""
        found = re.fullmatch(r"([a-z]+?)(\d*)", self.dtype)
        if self.dtype == "pred":
            return math.prod(self.dims)
        return math.prod(self.dims) * int(found[2]) // 8 if found and found[2] else 0


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of HLO."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    """Of the result; several for a tuple."""
    channel: str | None
    """Number of the message that it is part of, if it is."""
    times: int = 1
    """How often it runs: more than once in a loop."""


@dataclasses.dataclass(frozen=True)
class Collective:
    """A message between devices."""

    kind: str
    shapes: tuple[Shape, ...]
    """What every device has of it when it is done."""
    times: int = 1
    """How often it is sent."""

    @property
    def num_bytes(self) -> int:
        """Of one time."""
        return sum(shape.num_bytes for shape in self.shapes)


def instructions(hlo: str) -> Iterator[Instruction]:
    """Every instruction of every computation of a module's text."""
    hlo = _COMMENT.sub("", hlo)
    times = _times(hlo)
    for computation, body in _computations(hlo):
        for found in _INSTRUCTION.finditer(body):
            name, result, opcode, rest = found.groups()
            channel = _CHANNEL.search(rest)
            yield Instruction(name, opcode, _shapes(result), channel[1] if channel else None, times(computation))


def _computations(hlo: str) -> Iterator[tuple[str, str]]:
    """Name and text of every computation."""
    _, *parts = _COMPUTATION.split(hlo)
    yield from zip(parts[::2], parts[1::2], strict=True)


def _times(hlo: str) -> Callable[[str], int]:
    """Name of a computation -> how often it runs, as far as the compiler knows how often its loops do."""
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
    """All messages; of those in two parts (start and done) the result only.

    A message that the compiler cuts up, so that it overlaps with several fusions, stands in each of them with the same
    channel and shapes, and counts once.
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
    """The second half of (operands, results, contexts): contexts are scalars."""
    arrays = tuple(shape for shape in shapes if shape.dims)
    return arrays[len(arrays) // 2 :]


def carry_batch(found: Iterable[Collective], batch_size: int, own: Iterable[tuple[int, ...]] = ()) -> list[Collective]:
    """Those messages with an axis of the global batch's size, arrays shaped as `own` left aside.

    Args:
        found: messages.
        batch_size: of all devices together.
        own: shapes of parameters and of their parts, which may have this size by chance.
    """
    parameters = {tuple(sorted(dims)) for dims in own}
    return [
        message
        for message in found
        if any(batch_size in shape.dims and tuple(sorted(shape.dims)) not in parameters for shape in message.shapes)
    ]


def bytes_by_kind(found: Iterable[Collective]) -> dict[str, tuple[int, int]]:
    """Kind of message -> how many are sent, and their bytes on one device."""
    totals: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for message in found:
        totals[message.kind][0] += message.times
        totals[message.kind][1] += message.times * message.num_bytes
    return {kind: (count, size) for kind, (count, size) in sorted(totals.items())}
