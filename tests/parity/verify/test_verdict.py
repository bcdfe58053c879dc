"""The JSON object: always less than 4 KB, valid, and in agreement with the exit code."""

from __future__ import annotations

import json
import math

import pytest

from parity.measure.gates import Row
from parity.verify.verdict import DIFFERENT, EQUAL, UNJUDGED, Change, Part, Verdict

FILES = {x: {"file": f"{x}.py", "sha256": "0" * 64} for x in ("spec", "port")}


def verdict(kind: str, long: str = "", rows: tuple[Row, ...] = ()) -> Verdict:
    part = Part.of(rows, long) if rows else Part(note=long)
    change = Change(12, tuple(range(5)), long[:300], long[:80], long[:300])
    trials = [{"seed": 2**31, "inputs": [[1234567] * 8] * 8}] * 5
    return Verdict(kind, long or "why", Part("ok", note=long), part, part, Part("not asked"), FILES, change, trials)


@pytest.mark.parametrize(("kind", "code"), [(EQUAL, 0), (DIFFERENT, 1), (UNJUDGED, 2)])
def test_it_is_small_and_has_every_field(kind: str, code: int):
    rows = tuple(Row('\\"' * 200, "layer", "free", x, math.inf, 1e-13, note="é" * 999) for x in ("float64", "float32"))
    for made in (verdict(kind), verdict(kind, 'é\\"' * 999, rows)):
        text = made.as_json()
        assert len(text.encode()) < 4096
        found = json.loads(text)
        assert found["version"] == 1
        assert (found["verdict"], found["exit_code"], made.exit_code) == (kind, code, code)
        assert {"spec", "numeric", "gradients", "training", "change", "next", "files"} <= found.keys()
        assert found["training"] == {"status": "not asked"}
        assert str(made)


def test_a_part_is_equal_if_every_gate_holds():
    good, bad = (Row("a", "layer", "free", "float64", error, 1e-13) for error in (1e-14, 1e-12))
    zero = Row("b", "weights", "free", "float64", 0.0, 0.0)
    assert Part.of([good, zero]).status == EQUAL
    assert Part.of([good, bad, zero]).measured["float64"] == {"error": 1e-12, "gate": 1e-13, "where": "a", "failed": 1}
    assert Part.of([good, bad]).status == DIFFERENT
    assert Part.of([Row("a", "layer", "free", "float64", math.nan, 1e-13)]).status == DIFFERENT
    assert Part.of([]).status == DIFFERENT


def test_what_to_try_next():
    assert "line 12 of port.py" in verdict(DIFFERENT).next
    assert "nothing" in verdict(EQUAL).next
