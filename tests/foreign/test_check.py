"""`parity.check` on foreign pairs, without a rule: right ports pass; for every bug it names the module and the line.

Bugs that show in training mode only are left to tests/foreign/test_pairs.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import parity
from tests.foreign.pairs import PAIRS
from tests.foreign.pairs.common import ForeignPair

BUGS = [
    pytest.param(pair, name, id=f"{pair.name}-{name}")
    for pair in PAIRS
    for name, bug in pair.bugs.items()
    if not bug.training
]


def check(pair: ForeignPair, bug: str = "", level: str = "gradients") -> parity.Report:
    model = pair.torch_model(0)
    return parity.check(model, pair.jax_side(model, bug).adapter(), pair.inputs(0), level=level)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_right_ports_pass(pair: ForeignPair):
    report = check(pair)
    assert report.passed, str(report)
    assert len(report.layers) > 1  # modules were compared


@pytest.mark.parametrize(("pair", "bug"), BUGS)
def test_bugs_are_located(pair: ForeignPair, bug: str):
    report = check(pair, bug, level="forward")
    assert not report.passed
    assert report.first_divergence in pair.bugs[bug].modules, str(report)
    assert f"{Path(pair.file).name}:{pair.line_of(bug)}" in str(report)
