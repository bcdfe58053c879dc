"""Find the cause of a wrong module: the single switch under which PyTorch computes what JAX computed."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch

from parity.causes.failures import Wrong
from parity.causes.recordings import record
from parity.causes.replay import Recording
from parity.causes.search import Budget, Found, Search
from parity.measure.gates import Row
from parity.pairing.match_calls import Pair, Pairing
from parity.recording.capture import Call, Key
from parity.recording.inputs import Apply, positional
from parity.report.findings import Cause
from parity.runs.jax_side import JaxSide
from parity.runs.torch_side import TorchSide

NOT_REPLAYED = "not looked for (the call cannot be replayed by itself)"

WORK = 3e10
"""Maximum number of elements computed in replays: about a minute on one core."""


def find_causes(
    ours: TorchSide,
    theirs: JaxSide,
    arrays: Sequence[np.ndarray],
    pairing: Pairing,
    rows: Sequence[Row],
    notes: list[str] | None = None,
) -> tuple[Cause, ...]:
    """Return the causes of the failing modules, where they can be determined.

    Runs the PyTorch model again, and the JAX model once in forced mode, recording only the failing modules.

    Args:
        ours, theirs: Both models in float64.
        arrays: Inputs, in PyTorch's layout.
        rows: Measurements; only failing rows in forced mode and float64 are used.
        notes: List to which notes on modules that were not searched are appended.
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
    return name_causes(ours.model, ours.inputs(arrays), pairing.pairs, forced, rows, notes, apply=ours.apply)


def name_causes(
    model: torch.nn.Module,
    inputs: Sequence[torch.Tensor],
    pairs: Sequence[Pair],
    calls: Mapping[Key, Call],
    rows: Sequence[Row],
    notes: list[str] | None = None,
    *,
    apply: Apply = positional,
    work: float = WORK,
    within: Collection[str] | None = None,
) -> tuple[Cause, ...]:
    """As `find_causes`, from existing forced float64 calls of JAX (numpy, those of the failing pairs).

    The largest failure is searched first. Modules that fail in the same way (same class, same places, same shapes) are
    searched once; in the others the switches found there are tried first. `work` is the total number of elements that
    may be replayed. With `within`, one change of a step of these modules has to explain all of an error, and the cause
    is that of the step's module.
    """
    paired = {pair.torch for pair in pairs}
    found: dict[Key, list[Found]] = {}
    skipped: list[str] = []
    unseen: list[str] = []
    ranked = _ranked(_wrong(pairs, calls, rows), pairs, rows)
    left = work
    known: dict[tuple[object, ...], list[Found]] = {}
    for i, (owner, wrong) in enumerate(ranked):
        recording = _recorded(model, inputs, owner, paired, apply)
        if recording is None:
            unseen.append(owner[0] or "the model")
            continue
        budget = Budget(left / (len(ranked) - i) if i else left / 2)
        before = budget.left
        kind = _kind(recording, wrong)
        search = Search(recording, wrong, budget, _right(recording, wrong, pairs), within)
        found[owner] = search.find({(x.switch, x.text) for x in known[kind]}) if kind in known else []
        if not found[owner] and (kind not in known or known[kind]):
            found[owner] = search.find()
        if within is not None and found[owner]:
            return (_in_its_module(found[owner][0], search),)
        known.setdefault(kind, found[owner])
        left -= before - budget.left
        if search.spent and not found[owner]:
            skipped.append(owner[0] or "the model")
    for names, text in ((skipped, "not looked for to the end (too much to compute)"), (unseen, NOT_REPLAYED)):
        if names and notes is not None:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            notes.append(f"the cause was {text} in: {', '.join(names[:5])}{more}")
    return _causes(found, [pair.torch for pair in pairs])


def _in_its_module(found: Found, search: Search) -> Cause:
    step = search.steps[found.change.step] if found.change is not None and found.change.step >= 0 else None
    path = "" if step is None else step.module
    return Cause(path or "the model", found.switch, found.text, found.before, found.after)


def _right(recording: Recording, wrong: Sequence[Wrong], pairs: Sequence[Pair]) -> set[Key | None]:
    """Return the sites at which the module is right: all that are compared, except those in `wrong`."""
    compared = {pair.torch for pair in pairs if pair.inputs is not None}
    every: set[Key | None] = {site for site in recording.inner if site in compared}
    return (every | {None}) - {item.site for item in wrong}


def _recorded(
    model: torch.nn.Module, inputs: Sequence[torch.Tensor], key: Key, paired: set[Key], apply: Apply
) -> Recording | None:
    """Record a call; return None if it cannot be recorded or replayed."""
    try:
        recording = record(model, inputs, key, paired, apply)
        if recording is not None:
            recording.run()  # also detects whether the module works in place
    except Exception:  # user modules may raise anything when replayed
        return None
    return recording


def _causes(found: Mapping[Key, Sequence[Found]], order: Sequence[Key]) -> tuple[Cause, ...]:
    """Return the causes in the order of computation."""
    return tuple(
        Cause(key[0] or "the model", x.switch, x.text, x.before, x.after) for key in order for x in found.get(key, ())
    )


def _kind(recording: Recording, wrong: Sequence[Wrong]) -> tuple[object, ...]:
    """Return a key that is equal for modules that fail in the same way."""
    sites = [(None if w.site is None else recording.relative(w.site[0])) for w in wrong]
    shapes = [tuple(x.shape for x in w.value) for w in wrong]
    return type(recording.module), tuple(sites), tuple(shapes)


def _ranked(
    wrong: Mapping[Key, list[Wrong]], pairs: Sequence[Pair], rows: Sequence[Row]
) -> list[tuple[Key, list[Wrong]]]:
    """Sort by error, largest first; non-finite errors come last, as no switch explains them."""
    errors: dict[str, float] = {}
    for row in rows:
        if row.mode == "forced" and row.precision == "float64" and not row.passed:
            errors[row.name] = max(errors.get(row.name, 0.0), row.error if math.isfinite(row.error) else -1.0)
    return sorted(wrong.items(), key=lambda item: -max(errors.get(w.pair.name, 0.0) for w in item[1]))


def enclosing(pairs: Sequence[Pair], inner: Pair) -> Pair | None:
    """Return the pair whose call makes the call of `inner`: the first of its parents to return after it."""
    later = pairs[[pair.torch for pair in pairs].index(inner.torch) + 1 :]
    path = inner.torch[0]
    return next((pair for pair in later if pair.torch[0] == "" or path.startswith(pair.torch[0] + ".")), None)


def _failed(rows: Sequence[Row]) -> set[tuple[str, bool]]:
    """Return (name, whether the row measures the module's inputs) for each failing forced float64 row."""
    wanted = [row for row in rows if row.mode == "forced" and row.precision == "float64" and not row.passed]
    return {(row.name, row.kind == "calls") for row in wanted if row.kind in ("layer", "output", "calls")}


def _wrong(pairs: Sequence[Pair], calls: Mapping[Key, Call], rows: Sequence[Row]) -> dict[Key, list[Wrong]]:
    """Return the wrong results of each failing module, in the order of computation."""
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
