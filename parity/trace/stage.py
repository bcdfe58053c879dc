"""The stage of a check that compares every module by its values, where JAX's modules do not correspond to PyTorch's."""

from __future__ import annotations

import dataclasses
import math
import os
import traceback
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from parity.carry.arrays import first_line
from parity.causes.find_cause import name_causes
from parity.measure.gates import Gates, Row
from parity.pairing.match_calls import Pair
from parity.recording.capture import ROOT, Call, Key
from parity.report.findings import Cause
from parity.runs.jax_side import JaxSide
from parity.runs.torch_side import TorchSide
from parity.trace.difference import Difference
from parity.trace.locate import Located, locate
from parity.trace.own_casts import cast_causes, own_casts
from parity.trace.places import Place, places
from parity.trace.regions import caller, name
from parity.trace.values.fingerprint import distinct
from parity.trace.values.jax_values import run
from parity.trace.values.layout import closest
from parity.trace.values.match import Matches, captured, located
from parity.trace.values.program import Program, traced
from parity.trace.values.torch_operations import ModuleCall, TorchTrace, trace_torch


@dataclasses.dataclass(frozen=True)
class Traced:
    """Result of the stage.

    Attributes:
        rows: A free row for every module whose output JAX computes, and a forced row for every difference.
        layers: (name, PyTorch type) of the compared module calls, in the order in which they return.
        absent: Modules whose outputs JAX does not compute by themselves.
        causes: Causes of the differences, where they were found.
        notes: What was not verified.
    """

    rows: tuple[Row, ...]
    layers: tuple[tuple[str, str], ...]
    absent: tuple[str, ...]
    causes: tuple[Cause, ...]
    notes: tuple[str, ...]

    @property
    def located(self) -> bool:
        """Whether a difference was found in the values of both models."""
        return any(not row.passed for row in self.rows)

    def merged(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows of the models' outputs and these.

        A forced row of the model's output is left out if a difference was located: the model is not wrong by itself.
        """
        outer = [row for row in rows if not (self.located and row.mode == "forced" and row.kind == "output")]
        return [*self.rows, *outer]


def traced_rows(
    ours: TorchSide, theirs: JaxSide, arrays: Sequence[np.ndarray], gates: Gates, *, differ: bool
) -> Traced:
    """Compare all modules of `ours` with the values of `theirs`, both in float64.

    Args:
        differ: Whether the models' outputs differ: only then are the differences located.
    """
    try:
        return _traced_rows(ours, theirs, arrays, gates, differ=differ)
    except Exception as error:  # third-party code, and operations of every kind, may raise anything when followed
        place = _own_place(error)
        note = f"no module was compared, since the models cannot be followed step by step ({first_line(error)})"
        if place is not None and not isinstance(error, NotImplementedError):
            note = (
                f"no module was compared, because of a defect of parity, not of the models: {type(error).__name__} at "
                f"{place} ({first_line(error)}); please report it. Outputs and gradients are compared as usual"
            )
            warnings.warn(note, RuntimeWarning, stacklevel=2)
        return Traced((), (), (), (), (note,))


def _own_place(error: Exception) -> str | None:
    """Return the file and line of this package that raised the error; None if JAX, PyTorch or the models raised it."""
    frames = [x for x in traceback.extract_tb(error.__traceback__) if not x.filename.startswith(_NUMPY)]
    if not frames or not frames[-1].filename.startswith(_OWN):
        return None
    return f"{frames[-1].filename.removeprefix(_OWN)}:{frames[-1].lineno}"


_OWN, _NUMPY = (f"{Path(file).parent}{os.sep}" for file in (Path(__file__).parent, str(np.__file__)))
"""The folders of `parity`, and of NumPy, whose errors are those of its caller."""


def _traced_rows(
    ours: TorchSide, theirs: JaxSide, arrays: Sequence[np.ndarray], gates: Gates, *, differ: bool
) -> Traced:
    trace, program = trace_torch(ours, arrays), traced(theirs, arrays)
    with theirs.switches():
        found = locate(ours, arrays, trace, program, every=differ)
        rows, absent = _equal_modules(ours, arrays, trace, program, found, gates)
    notes: list[str] = []
    causes: tuple[Cause, ...] = ()
    if differ:
        named = dict(_failing(trace, found, gates))
        rows += named.values()
        with ours.wide():
            causes = _causes(ours, arrays, trace, found, rows, notes)
        own = own_casts(program)
        with theirs.switches():
            proven = cast_causes(theirs, arrays, trace, found.differences, own)
        # A proven cast replaces the other causes of its module; without any cast, nothing is rounded.
        causes = tuple(x for x in causes if x.module not in proven and (own or not x.switch.endswith("leak")))
        causes = (*causes, *proven.values())
        with ours.wide(), theirs.switches():
            if not causes and found.differences:
                causes = _whole_causes(ours, arrays, trace, program, found)
        if not found.complete:
            last = found.differences[-1].region.owner if found.differences else ROOT
            notes.append(f"what follows {name(last) or 'the model'} was not compared, since it cannot be replaced")
    modules = dict(ours.model.named_modules())
    compared = {name(call.key) for call in trace.calls} if differ else {row.name for row in rows}
    layers = [(name(call.key), type(modules[call.key[0]]).__name__) for call in trace.calls]
    return Traced(
        tuple(rows), tuple(layer for layer in layers if layer[0] in compared), tuple(absent), causes, tuple(notes)
    )


def _equal_modules(
    ours: TorchSide,
    arrays: Sequence[np.ndarray],
    trace: TorchTrace,
    program: Program,
    found: Located,
    gates: Gates,
) -> tuple[list[Row], list[str]]:
    """Return a row for every module whose outputs were found, in the layout that fits best, and the other modules."""
    places = {call.key: located(call, found.first) for call in trace.calls if call.key != ROOT and call.outputs}
    wanted = {key: numbers for key, numbers in places.items() if numbers}
    absent = [f"{name(key)} of PyTorch" for key, numbers in places.items() if not numbers]
    rows = []
    for section in _sections(trace, wanted):
        oracle = ours.forward(arrays, only=set(section))
        values = captured(program, {}, {number for key in section for number in wanted[key]})
        for key in section:
            floats = [oracle[key].outputs[x.index] for x in _call(trace, key).outputs]
            error = max(_error(values[n], x) for n, x in zip(wanted[key], floats, strict=True))
            if error <= gates.f64:
                rows.append(Row(name(key), "layer", "free", "float64", error, gates.f64))
            else:
                absent.append(f"{name(key)} of PyTorch: JAX has its numbers in another order")
    return rows, absent


SECTION_BYTES = 512 * 2**20
"""Size of the values of one framework that are held at once."""


def _sections(trace: TorchTrace, wanted: Mapping[Key, Sequence[int]]) -> Iterator[list[Key]]:
    section: list[Key] = []
    size = 0
    for call in trace.calls:
        if call.key in wanted:
            needed = 8 * sum(math.prod(x.shape) for x in (*call.inputs, *call.outputs))
            if section and size + needed > SECTION_BYTES:
                yield section
                section, size = [], 0
            section.append(call.key)
            size += needed
    if section:
        yield section


def _call(trace: TorchTrace, key: Key) -> ModuleCall:
    return next(call for call in trace.calls if call.key == key)


def _error(value: np.ndarray, wanted: np.ndarray) -> float:
    if value.size != wanted.size:  # one of the two is repeated, for example for every example of a batch
        value, wanted = distinct(value), distinct(wanted)
    best = closest(value, wanted) if value.size == wanted.size else None
    return math.inf if best is None else best[0]


def _failing(trace: TorchTrace, found: Located, gates: Gates) -> Iterator[tuple[tuple[str, str], Row]]:
    """Yield a failing row for every difference: what a module returns, or what it passes to an inner module."""
    for difference in found.differences:
        note = _note(trace, difference)
        for place in places(trace, difference):
            where, kind = (place.call.key, "calls") if place.into else (place.call.key, "layer")
            if where == ROOT:
                kind = "output"
            error = max(place.error, 2 * gates.f64)
            yield (name(where), kind), Row(name(where), kind, "forced", "float64", error, gates.f64, note=note)


def _note(trace: TorchTrace, difference: Difference) -> str:
    """Say where the difference is, in both programs."""
    first = trace.operations[difference.region.operations[0]]
    where = f" at {first.where}" if first.where else ""
    lines = f", in JAX {', '.join(difference.lines[:6])}" if difference.lines else ""
    what = "first differs:"
    if difference.misplaced:
        what = "the right numbers in another order, first used by"
    elif difference.instead:
        what = "another value is given to"
    return f"{what} {first.name}{where} in PyTorch{lines}"


def _causes(
    ours: TorchSide,
    arrays: Sequence[np.ndarray],
    trace: TorchTrace,
    found: Located,
    rows: Sequence[Row],
    notes: list[str],
) -> tuple[Cause, ...]:
    """Search the causes of the differences, with JAX's values in PyTorch's layout as the wrong ones."""
    gave: dict[Key, dict[int, Place]] = {}
    taken: dict[Key, dict[int, Place]] = {}
    for place in (place for difference in found.differences for place in places(trace, difference)):
        if place.value is not None and place.tensor is not None:
            (taken if place.into else gave).setdefault(place.call.key, {})[place.tensor.index] = place
    wrong = gave.keys() | taken.keys()
    oracle = ours.forward(arrays, only=wrong)
    held = _held(trace, found.last, wrong)
    pairs = [_pair(ours.model, call, taken.get(call.key, {}), gave.get(call.key)) for call in held]
    calls = {}
    for key in wrong:
        inputs, outputs = oracle[key].inputs or [], oracle[key].outputs
        given = [taken[key][i].as_in(inputs[i]) for i in sorted(taken.get(key, {}))]
        calls[key] = Call(given, [gave[key][i].as_in(outputs[i]) for i in sorted(gave.get(key, {}))])
    return name_causes(ours.model, ours.inputs(arrays), pairs, calls, rows, notes, apply=ours.apply)


def _whole_causes(
    ours: TorchSide, arrays: Sequence[np.ndarray], trace: TorchTrace, program: Program, found: Located
) -> tuple[Cause, ...]:
    """Search the one change, in the modules around the differences, under which the model returns what JAX returns.

    It is the cause of the first difference, and so of all of them.
    """
    wanted = ours.forward(arrays, only={ROOT})[ROOT].outputs
    given = run(program.closed, program.arguments, lambda step: None)
    outputs = [_like(np.asarray(x), y) for x, y in zip(given, wanted, strict=len(given) == len(wanted))]
    if len(given) != len(wanted) or any(x is None for x in outputs):
        return ()
    pair = Pair(ROOT, ROOT, ours.model, (), (), (None,) * len(wanted))
    row = Row("", "output", "forced", "float64", math.inf, 0.0)
    calls = {ROOT: Call([], [x for x in outputs if x is not None])}
    inputs = ours.inputs(arrays)
    causes = name_causes(ours.model, inputs, [pair], calls, [row], apply=ours.apply, within=_suspects(trace, found))
    first = next(places(trace, found.differences[0]), None)
    if first is None:
        return causes
    path = caller(trace, first.call.key) if first.into else first.call.key[0]
    return tuple(dataclasses.replace(cause, module=path or "the model") for cause in causes)


def _like(value: np.ndarray, wanted: np.ndarray) -> np.ndarray | None:
    """Return an output of JAX in PyTorch's layout; None if it has none."""
    if value.shape == wanted.shape:
        return value
    best = closest(value, wanted) if value.size == wanted.size else None
    return None if best is None else best[1].to_torch(value)


def _suspects(trace: TorchTrace, found: Located) -> frozenset[str]:
    """Return the modules that compute a difference, what it is computed from, or what uses it, and their callers."""
    users, paths = trace.users(), set[str]()
    for difference in found.differences[:MOST_SUSPECTED]:
        region = difference.region
        behind = {source for op in region.operations for source in trace.operations[op].inputs}
        after = {user for end in region.ends for user in users[end]}
        for op in {*region.operations, *behind, *after}:
            path = trace.operations[op].owner[0]
            paths |= {".".join(path.split(".")[:count]) for count in range(path.count(".") + 2)}
    return frozenset(paths)


MOST_SUSPECTED = 3
"""Number of differences, the first ones, around which one cause of all of them is looked for."""


def _held(trace: TorchTrace, matches: Matches, wrong: Collection[Key]) -> list[ModuleCall]:
    """Return the calls that are judged by themselves: their outputs are values of JAX, or their tensors are wrong.

    So are the callers of those whose inputs are wrong. All calls of a module are held, or none is: in a replay they
    return what was recorded.
    """
    callers = {caller(trace, key) for key in wrong}
    own = {ROOT, *wrong, *(call.key for call in trace.calls if call.key[0] in callers)}
    absent = {call.key[0] for call in trace.calls if call.key not in own and located(call, matches) is None}
    fixed = {key[0] for key in own}
    return [call for call in trace.calls if call.key[0] in fixed or call.key[0] not in absent]


def _pair(
    model: torch.nn.Module, call: ModuleCall, taken: Mapping[int, object], gave: Mapping[int, object] | None
) -> Pair:
    """Return a pair whose wrong inputs and outputs, by index, are the ones to explain; all outputs if none is wrong."""
    inputs = tuple(sorted(taken))
    outputs = None if gave is None else tuple(sorted(gave))
    count = max((x.index for x in call.outputs), default=-1) + 1 if outputs is None else len(outputs)
    axes = (None,) * len(inputs), (None,) * count
    return Pair(call.key, call.key, model.get_submodule(call.key[0]), inputs, *axes, outputs=outputs)
