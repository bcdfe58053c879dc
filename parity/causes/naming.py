"""Names the cause of a wrong module: the single switch under which PyTorch computes what JAX did."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from parity.capture import Call, Key
from parity.causes.relations import relations
from parity.causes.replay import Recording, Sites, Step, record, tensors_of
from parity.causes.switches import generic, head_orders, part_orders, rounded_to, specific
from parity.causes.variant import Variant
from parity.compare import Row, rel_f
from parity.inputs import Apply, positional
from parity.pairing import Pair, Pairing, aligned
from parity.report import Cause
from parity.runs import JaxSide, TorchSide

MODULES = 4
"""So many failing modules are looked into, in the order of computation."""

SECONDS = 15.0
"""So long is searched for one module's cause."""

GATE = 1e-13
"""An error that counts as none, as everywhere in float64."""

SAME_SIZE = 30.0
"""Two errors by rounding are of one size if their ratio is within this."""


@dataclasses.dataclass(frozen=True)
class Wrong:
    """Something that a module gets wrong: what it passes to the inner call `site`, or returns (None)."""

    site: Key | None
    pair: Pair
    value: list[np.ndarray]

    def wanted(self, sites: Sites) -> list[np.ndarray] | None:
        """What a replay gives here, in JAX's layout."""
        tensors = sites.get(self.site)
        if tensors is None:
            return None
        arrays = [x.detach().cpu().numpy() for x in tensors]
        if self.site is None:
            return aligned(arrays, self.pair.output_axes)
        chosen = self.pair.inputs or ()
        return aligned([arrays[i] for i in chosen], self.pair.input_axes)

    def error(self, sites: Sites) -> float:
        """relF of JAX's tensors to a replay's, the largest; inf if they cannot be compared."""
        wanted = self.wanted(sites)
        if wanted is None or [x.shape for x in wanted] != [x.shape for x in self.value]:
            return math.inf
        return max((rel_f(a, b) for a, b in zip(self.value, wanted, strict=True)), default=0.0)


def find_causes(
    ours: TorchSide, theirs: JaxSide, arrays: Sequence[np.ndarray], pairing: Pairing, rows: Sequence[Row]
) -> tuple[Cause, ...]:
    """The causes of the failing modules, as far as they can be told, at most one each.

    Runs PyTorch's model again, and JAX's once, forced, with the failing modules alone recorded.

    Args:
        ours, theirs: both models in float64.
        arrays: the inputs, in PyTorch's layout.
        rows: the measurements; of them the forced float64 ones that failed count.
    """
    failed = _failed(rows)
    section = [pair for pair in pairing.pairs if pair.name in {name for name, _ in failed}]
    if not section:
        return ()
    known = pairing.with_children(section)
    oracle = ours.forward(arrays, only={pair.torch for pair in known})
    own = {pair.torch for pair in section}
    references = {pair.jax: pair.reference(oracle[pair.torch]) for pair in known}
    for pair in known:
        if pair.torch not in own:
            references[pair.jax].inputs = None
    forced = theirs.forward(arrays, references, only={pair.jax for pair in section})
    return name_causes(ours.model, ours.inputs(arrays), pairing.pairs, forced, rows, ours.apply)


def name_causes(
    model: torch.nn.Module,
    inputs: Sequence[torch.Tensor],
    pairs: Sequence[Pair],
    calls: Mapping[Key, Call],
    rows: Sequence[Row],
    apply: Apply = positional,
) -> tuple[Cause, ...]:
    """As `find_causes`, from JAX's forced float64 calls (numpy, those of the failing pairs) that are at hand."""
    causes = []
    paired = {pair.torch for pair in pairs}
    for owner, wrong in list(_wrong(pairs, calls, rows).items())[:MODULES]:
        recording = record(model, inputs, owner, paired, apply)
        if recording is not None:
            cause = _name(owner[0] or "the model", recording, wrong)
            causes += [cause] if cause is not None else []
    return tuple(causes)


def enclosing(pairs: Sequence[Pair], inner: Pair) -> Pair | None:
    """The pair whose call makes the call of `inner`: the next to return of the modules around it."""
    later = pairs[[pair.torch for pair in pairs].index(inner.torch) + 1 :]
    path = inner.torch[0]
    return next((pair for pair in later if pair.torch[0] == "" or path.startswith(pair.torch[0] + ".")), None)


def _failed(rows: Sequence[Row]) -> set[tuple[str, bool]]:
    """(name, whether it is about what the module is given) of the failing forced float64 rows."""
    wanted = [row for row in rows if row.mode == "forced" and row.precision == "float64" and not row.passed]
    return {(row.name, row.kind == "calls") for row in wanted if row.kind in ("layer", "output", "calls")}


def _wrong(pairs: Sequence[Pair], calls: Mapping[Key, Call], rows: Sequence[Row]) -> dict[Key, list[Wrong]]:
    """What each failing module gets wrong, in the order of computation."""
    found: dict[Key, list[Wrong]] = {}
    failed = _failed(rows)
    for pair in pairs:
        call = calls.get(pair.jax)
        if call is None:
            continue
        around = enclosing(pairs, pair) if (pair.name, True) in failed else None
        if around is not None:
            found.setdefault(around.torch, []).append(Wrong(pair.torch, pair, call.inputs or []))
        if (pair.name, False) in failed:
            found.setdefault(pair.torch, []).append(Wrong(None, pair, call.outputs))
    return found


def _name(module: str, recording: Recording, wrong: Sequence[Wrong]) -> Cause | None:
    """Tries every switch; the first that explains all that is wrong wins, else the first that explains the first."""
    sites, steps = recording.run()
    before = [item.error(sites) for item in wrong]
    reference = [item.wanted(sites) for item in wrong]
    deadline = time.monotonic() + SECONDS
    partial: Cause | None = None

    def judge(switch: str, text: str, replayed: Sites, rounding: bool) -> Cause | None:
        nonlocal partial
        after = [item.error(replayed) for item in wrong]
        if rounding:
            after = [_excess(b, item, replayed, r) for b, item, r in zip(before, wrong, reference, strict=True)]
        if max(after) <= GATE:
            return Cause(module, switch, text, max(before), max(after))
        if partial is None and after[0] <= GATE:
            partial = Cause(module, switch, f"{text} (explains the first of {len(after)} errors)", before[0], after[0])
        return None

    for switch, text, replayed, rounding in _replays(recording, steps, deadline):
        cause = judge(switch, text, replayed, rounding)
        if cause is not None:
            return cause
    related = _related(module, recording, wrong[0], sites, steps)
    return partial or related or _float32_sized(module, recording, wrong[0], sites)


def _excess(error: float, item: Wrong, replayed: Sites, reference: list[np.ndarray] | None) -> float:
    """How far JAX's error exceeds what other roundings of the same function make; inf if they make none."""
    varied = item.wanted(replayed)
    if varied is None or reference is None:
        return math.inf
    size = max((rel_f(a, b) for a, b in zip(varied, reference, strict=True)), default=0.0)
    explains = size > GATE / SAME_SIZE and size / SAME_SIZE <= error <= SAME_SIZE * size
    return 0.0 if explains else math.inf


Change = tuple[str, str, dict[str, Any], bool]
"""Switch, description, arguments of the replay, and whether it only rounds otherwise."""


def _replays(recording: Recording, steps: Sequence[Step], deadline: float) -> Iterator[tuple[str, str, Sites, bool]]:
    """(switch, description, what the module then computes, whether it only rounds otherwise), until time is up."""
    for switch, text, arguments, rounding in _changes(recording, steps):
        if time.monotonic() > deadline:
            return
        sites = _attempt(recording, arguments)
        if sites is not None:
            yield switch, text, sites, rounding


def _changes(recording: Recording, steps: Sequence[Step]) -> Iterator[Change]:
    """All single switches, the most telling first; each step stands for all at its place."""
    sizes = sorted({n for step in steps for x in tensors_of((step.args, step.output)) for n in x.shape if n > 1})
    first = list({(step.place, step.name): step for step in reversed(steps)}.values())[::-1]
    for (path, index), tree in recording.inner.items():
        for switch, text, other in part_orders(tree):
            yield switch, f"{path}: {text}", {"inner": {(path, index): other}}, False
    variants = [(step, variant) for step in first for variant in _safely(specific(step, sizes))]
    yield from (_altered(step, variant) for step, variant in variants if not variant.rounding)
    for (path, index), tree in recording.inner.items():
        for switch, text, other in head_orders(tree, [n for n in sizes if n <= 64]):
            yield switch, f"{path}: {text}", {"inner": {(path, index): other}}, False
    pool = _pool(recording)
    for step in first:
        yield from (_altered(step, variant) for variant in _safely(generic(step, list(pool))))
        pool += [(f"the result of {step.name}{step.where}", x) for x in tensors_of(step.output)[:1]]
    yield from (_altered(step, variant) for step, variant in variants if variant.rounding)


def _altered(step: Step, variant: Variant) -> Change:
    text = variant.description if step.name in variant.description else f"{step.name}: {variant.description}"
    arguments: dict[str, Any] = {"altered": (step.place, step.name), "alter": variant.alter}
    return variant.switch, text + step.where, arguments, variant.rounding


def _safely(variants: Iterator[Variant]) -> list[Variant]:
    """The variants of a step; none if the entry does not understand this way of calling the function."""
    try:
        return list(variants)
    except (TypeError, ValueError, IndexError, AttributeError, RuntimeError, KeyError):
        return []


def _attempt(recording: Recording, arguments: Mapping[str, Any]) -> Sites | None:
    """A replay; None if PyTorch cannot run it so."""
    try:
        sites, _ = recording.run(**arguments)
    except Exception:  # whatever a foreign module raises on tensors that it never expected
        return None
    return sites


def _pool(recording: Recording) -> list[tuple[str, torch.Tensor]]:
    """The module's inputs, what inner modules returned, and its own parameters."""
    pool = [(f"input {i}", x) for i, x in enumerate(tensors_of((recording.args, recording.kwargs)))]
    for (path, _), tree in recording.inner.items():
        pool += [(f"the output of {path}", x) for x in tensors_of(tree)]
    own = dict(recording.module.named_parameters(recurse=False)) | dict(recording.module.named_buffers(recurse=False))
    return pool + [(name, x.detach()) for name, x in own.items()]


def _related(module: str, recording: Recording, wrong: Wrong, sites: Sites, steps: Sequence[Step]) -> Cause | None:
    """The first relation between what JAX has and what is at hand."""
    wanted = wrong.wanted(sites)
    if wanted is None or len(wanted) != len(wrong.value):
        return None
    pool = [*_pool(recording), *((f"the result of {s.name}", x) for s in steps for x in tensors_of(s.output))]
    for reference, value in zip(wanted, wrong.value, strict=True):
        if value.shape != reference.shape or rel_f(value, reference) <= GATE:
            continue
        others = [(name, array) for name, x in pool for array in _layouts(x, reference.shape)]
        for relation in relations(value, reference, others):
            after = rel_f(value, relation.predicted) if np.isfinite(relation.predicted).all() else math.inf
            if after <= GATE:
                return Cause(module, relation.switch, relation.description, rel_f(value, reference), after)
    return None


def _layouts(tensor: torch.Tensor, shape: tuple[int, ...]) -> list[np.ndarray]:
    """A tensor in the layouts that fit `shape`: as it is, with the channels last."""
    x = tensor.detach().cpu().numpy()
    last = np.moveaxis(x, 1, -1) if x.ndim > 2 else x
    return [a for a in (x, *([last] if x.ndim > 2 else [])) if a.shape == shape and np.issubdtype(a.dtype, np.floating)]


def _float32_sized(module: str, recording: Recording, wrong: Wrong, sites: Sites) -> Cause | None:
    """An error that no switch explains, in most elements, and of the size that float32 makes here."""
    wanted, error = wrong.wanted(sites), wrong.error(sites)
    rounded, _ = recording.run(None, lambda step: rounded_to(torch.float32, step.run()))
    if wanted is None or _excess(error, wrong, rounded, wanted) > 0:
        return None
    affected = [np.abs(a - b) > 2.0**-40 * np.abs(b) for a, b in zip(wrong.value, wanted, strict=True)]
    if np.mean([x.mean() for x in affected]) < 0.5:
        return None
    text = f"something inside is computed in float32: the error is {error * 2**24:.2g} of its roundings (2^-24)"
    return Cause(module, "float32 leak", text, error, 0.0)
