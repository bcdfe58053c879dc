"""Which of several outputs differ."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from parity.judgement.named_outputs import with_outputs
from parity.measure.gates import Row
from parity.pairing.match_calls import Pair
from parity.recording.capture import ROOT


def pair(*names: str) -> Pair:
    return Pair(ROOT, ROOT, torch.nn.Identity(), (), (), (None,) * len(names), names)


@pytest.mark.parametrize("names", [("logits", "states"), ("states", "logits")])
def test_a_failing_row_names_what_differs(names: tuple[str, ...]) -> None:
    one = np.ones(4)
    row = Row("", "output", "free", "float64", 1.0, 1e-13)
    found = with_outputs(row, pair(*names), [one, 2 * one], [one, one])
    assert found.note == f"different: {names[1]} (relF 1.0e+00); equal: {names[0]}"
    assert not found.passed
    assert with_outputs(row, pair(*names), [2 * one] * 2, [one] * 2).note.endswith(f"{names[1]} (relF 1.0e+00)")


def test_other_rows_stay_as_they_are() -> None:
    one, names = np.ones(4), pair("logits", "states")
    equal = Row("", "output", "free", "float64", 0.0, 1e-13)
    assert with_outputs(equal, names, [one, one], [one, one]) is equal
    said = Row("", "output", "free", "float64", 1.0, 1e-13, note="shapes differ")
    assert with_outputs(said, names, [one, one], [one, 2 * one]) is said
    single = Row("", "output", "free", "float64", 1.0, 1e-13)
    assert with_outputs(single, pair(), [2 * one], [one]) is single
