"""Ports that cheat: none is accepted, and none breaks or holds up the process that judges."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from parity.verify.run import Limits
from parity.verify.verdict import DIFFERENT, UNJUDGED, Verdict
from parity.verify.verify import verify_port
from tests.parity.verify.forged import FORGED, HONEST, SPEC
from tests.parity.verify.hostile import GREEDY, HOSTILE

CHEATING = FORGED | HOSTILE
SMALL = Limits(seconds=25, wall=60, memory=6, output=64)


def verified(folder: Path, port: str, limits: Limits | None = None) -> Verdict:
    (folder / "spec.py").write_text(SPEC)
    (folder / "port.py").write_text(port)
    return verify_port(folder / "spec.py", folder / "port.py", trials=2, limits=limits, locate=False)


def test_there_are_enough_of_them():
    assert len(CHEATING) + len(GREEDY) >= 60


@pytest.mark.parametrize("name", CHEATING)
def test_forged_ports_are_not_accepted(name: str, tmp_path: Path):
    found = verified(tmp_path, CHEATING[name])
    assert found.verdict in (DIFFERENT, UNJUDGED), found
    assert found.exit_code in (1, 2)
    assert found.spec.status == "ok"
    assert len(found.as_json().encode()) < 4096
    assert json.loads(found.as_json())["verdict"] == found.verdict


@pytest.mark.parametrize("name", GREEDY)
def test_greedy_ports_end(name: str, tmp_path: Path):
    found = verified(tmp_path, GREEDY[name], SMALL)
    assert found.verdict in (DIFFERENT, UNJUDGED), found
    assert len(found.as_json().encode()) < 4096


def test_the_port_that_they_all_begin_with_is_right(tmp_path: Path):
    found = verified(tmp_path, HONEST)
    assert found.exit_code == 0, found
    assert found.numeric.status == found.gradients.status == "equal"
