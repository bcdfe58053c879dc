"""Casts that only the port makes, as causes; proven by leaving them out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from parity.causes.find_cause import enclosing
from parity.judgement.rows import layer_rows
from parity.measure.gates import Gates, Row
from parity.pairing.match_calls import Pairing
from parity.precision.casts import FRACTION
from parity.report.findings import Cause
from parity.runs.jax_side import JaxSide
from parity.runs.torch_side import TorchSide


def leak_causes(
    ours: TorchSide,
    theirs: JaxSide,
    arrays: Sequence[np.ndarray],
    pairing: Pairing,
    rows: Sequence[Row],
    gates: Gates,
) -> dict[str, Cause]:
    """Return module -> cause for modules that are wrong only because of a cast that PyTorch does not make.

    Runs the JAX model once more in forced mode if a failing module casts where PyTorch's does not.

    Args:
        ours, theirs: Both models in float64.
        rows: Measurements; only failing rows in forced mode and float64 are used.
    """
    own = pairing.design.leaks()
    wrong = {path: found for path, found in _failed(rows, pairing).items() if path in own}
    if not wrong:
        return {}
    design = dataclasses.replace(pairing.design, granted=frozenset(wrong))
    again = _rows_again(ours, dataclasses.replace(theirs, design=design), arrays, pairing, gates)
    causes = {}
    for path, found in wrong.items():
        after = [again.get((row.name, row.kind)) for row in found]
        if all(row is not None and row.passed for row in after):
            name = path or "the model"
            errors = max(row.error for row in found), max(row.error for row in after if row is not None)
            causes[name] = Cause(name, f"{narrowest(own[path])} leak", f"JAX alone casts to {own[path]}", *errors)
    return causes


def narrowest(text: str) -> str:
    """Return the narrowest of the formats that a text names."""
    return min((name for name in FRACTION if f"{name} " in f"{text} "), key=lambda name: FRACTION[name])


def _failed(rows: Sequence[Row], pairing: Pairing) -> dict[str, list[Row]]:
    """Return the failing forced float64 rows of each module; wrong inputs are assigned to the enclosing module."""
    pairs = {pair.name: pair for pair in pairing.pairs}
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row.mode == "forced" and row.precision == "float64" and not row.passed and row.name in pairs:
            around = enclosing(pairing.pairs, pairs[row.name]) if row.kind == "calls" else pairs[row.name]
            if around is not None:
                found.setdefault(around.torch[0], []).append(row)
    return found


def _rows_again(
    ours: TorchSide, theirs: JaxSide, arrays: Sequence[np.ndarray], pairing: Pairing, gates: Gates
) -> Mapping[tuple[str, str], Row]:
    oracle = ours.forward(arrays)
    references = {pair.jax: pair.reference(oracle[pair.torch]) for pair in pairing.pairs}
    calls = theirs.forward(arrays, references)
    return {(row.name, row.kind): row for row in layer_rows(pairing.pairs, references, calls, "forced", gates)}


def believable(causes: Sequence[Cause], pairing: Pairing, rows: Sequence[Row]) -> list[Cause]:
    """Drop leaks in modules that cast nothing to a narrower format (except by design) and have no wrong weight."""
    different = {row.name for row in rows if row.kind == "weights" and not row.passed}
    return [
        cause
        for cause in causes
        if not cause.switch.endswith("leak")
        or pairing.design.narrows("" if cause.module == "the model" else cause.module)
        or any(cause.module == "the model" or name.startswith(cause.module) for name in different)
    ]
