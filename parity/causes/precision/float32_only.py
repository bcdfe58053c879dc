"""Causes of failures in float32 only: the algorithm is right, its rounding is not."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from parity.causes.changes import Change, around, changes
from parity.causes.failures import Wrong, distance
from parity.causes.precision.rounding import alike
from parity.causes.recordings import record
from parity.causes.replay import Recording, Sites
from parity.measure.gates import Row, real_numbers
from parity.pairing.match_calls import Pair, Pairing
from parity.recording.capture import Call, Key
from parity.report.findings import Cause
from parity.runs.jax_side import JaxSide
from parity.runs.torch_side import TorchSide

MODULES = 8
"""Maximum number of modules searched, in the order of computation."""

WORSE = 3.0
"""The error of a rounding must be at least this multiple of PyTorch's own to explain the failure."""


def find_single_causes(
    ours: TorchSide,
    theirs: JaxSide,
    arrays: Sequence[np.ndarray],
    pairing: Pairing,
    rows: Sequence[Row],
    notes: list[str] | None = None,
) -> tuple[Cause, ...]:
    """Return the causes of modules that fail on correct inputs in float32 but not in float64.

    Args:
        ours: PyTorch model in float64.
        theirs: JAX model in float32.
        arrays: Inputs, in PyTorch's layout.
        notes: List to which notes on modules that were not searched are appended.
    """
    names = _failed(rows)
    section = [pair for pair in pairing.pairs if pair.name in names]
    if len(section) > MODULES and notes is not None:
        notes.append(f"of {len(section)} modules that fail in float32 alone the first {MODULES} are looked into")
    section = section[:MODULES]
    if not section:
        return ()
    known = pairing.with_children(section)
    oracle = ours.forward(arrays, only={pair.torch for pair in known})
    own = {pair.torch for pair in section}
    references = {
        pair.jax: pair.reference(oracle[pair.torch])
        if pair.torch in own
        else Call(None, pair.reference(oracle[pair.torch]).outputs)
        for pair in known
    }
    forced = theirs.forward(arrays, references, only={pair.jax for pair in section})
    return name_single_causes(ours.model, ours.inputs(arrays), pairing.pairs, section, forced)


def name_single_causes(
    model: torch.nn.Module,
    inputs: Sequence[torch.Tensor],
    pairs: Sequence[Pair],
    section: Sequence[Pair],
    calls: Mapping[Key, Call],
) -> tuple[Cause, ...]:
    """As `find_single_causes`, from JAX's forced float32 calls (numpy) of the pairs in `section`."""
    single = copy.deepcopy(model).float()
    paired = {pair.torch for pair in pairs}
    found = []
    for pair in section:
        try:
            recording = record(model, inputs, pair.torch, paired)
            if recording is not None:
                wrong = Wrong(None, pair, calls[pair.jax].outputs)
                found += _name(recording, _rounded(recording, single), wrong)
        except Exception:  # user modules may raise anything when replayed
            continue
    return tuple(found)


def _failed(rows: Sequence[Row]) -> set[str]:
    """Return the names of modules that fail on correct inputs in float32, and pass in float64."""
    forced = [row for row in rows if row.mode == "forced" and row.kind in ("layer", "output") and not row.passed]
    double = {row.name for row in forced if row.precision == "float64"}
    return {row.name for row in forced if row.precision == "float32"} - double


def _rounded(recording: Recording, model: torch.nn.Module) -> Recording:
    """Return the recording of the same call, on the same tensors, with a model in float32."""
    modules = dict(model.named_modules())
    args, kwargs, inner = pytree.tree_map(_short, (recording.args, recording.kwargs, recording.inner))
    module = modules[recording.path]
    return dataclasses.replace(recording, module=module, modules=modules, args=args, kwargs=kwargs, inner=inner)


def _short(x: Any) -> Any:
    return x.float() if isinstance(x, torch.Tensor) and x.dtype == torch.float64 else x


def _name(double: Recording, single: Recording, wrong: Wrong) -> list[Cause]:
    """Return the rounding whose error relative to float64 agrees best with JAX's."""
    oracle, (own, _) = _values(wrong, double.run()[0]), single.run()
    _, steps = single.run()
    plain = _values(wrong, own)
    if oracle is None or plain is None:
        return []
    before = max(distance(a, b) for a, b in zip(wrong.value, oracle, strict=True))
    noise = max(distance(a, b) for a, b in zip(plain, oracle, strict=True))
    best: tuple[float, Change, float] | None = None
    for change in changes(single, around(single, steps)):
        replayed = _values(wrong, _run(single, change)) if change.rounding else None
        if replayed is None:
            continue
        if max(distance(a, b) for a, b in zip(replayed, oracle, strict=True)) < WORSE * noise:
            continue
        left = alike(real(wrong.value), real(oracle), real(replayed), change.rounding)
        if left is not None and (best is None or left < best[0]):
            after = max(distance(a, b) for a, b in zip(wrong.value, replayed, strict=True))
            best = left, change, after
    if best is None:
        return []
    _, change, after = best
    return [Cause(wrong.pair.name or "the model", change.switch, f"in float32: {change.text}", before, after)]


def _run(recording: Recording, change: Change) -> Sites:
    try:
        return recording.run(change.alterations)[0]
    except Exception:  # user modules may raise anything on unexpected tensors
        return {}


def _values(wrong: Wrong, sites: Sites) -> list[np.ndarray] | None:
    """Return the module's outputs in float64 (complex tensors unchanged)."""
    found = wrong.wanted(sites)
    return None if found is None else [x if np.iscomplexobj(x) else x.astype(np.float64) for x in found]


def real(tensors: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Convert tensors to real float64; complex ones become their real and imaginary parts."""
    return [real_numbers(x)[0] for x in tensors]
