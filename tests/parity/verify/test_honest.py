"""Right ports: none is refused, in whichever library they are written."""

from __future__ import annotations

from pathlib import Path

import pytest

from parity.verify.verify import verify_port
from tests.foreign.pairs import PAIRS
from tests.foreign.pairs.common import ForeignPair
from tests.parity.verify.foreign_ports import port_of, spec_of
from tests.parity.verify.honest import PORTS


def assert_equal(folder: Path, spec: str, port: str) -> None:
    (folder / "spec.py").write_text(spec)
    (folder / "port.py").write_text(port)
    found = verify_port(folder / "spec.py", folder / "port.py", trials=2)
    assert found.verdict == "equal", found
    assert found.exit_code == 0
    assert found.numeric.status == "equal"
    assert found.gradients.status == ("not asked" if "gradients = False" in spec else "equal")
    assert len(found.as_json().encode()) < 4096


def test_there_are_thirty():
    assert len(PORTS) + len(PAIRS) >= 30


@pytest.mark.parametrize("name", PORTS)
def test_honest_ports_are_not_refused(name: str, tmp_path: Path):
    assert_equal(tmp_path, *PORTS[name])


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_foreign_ports_are_not_refused(pair: ForeignPair, tmp_path: Path):
    assert_equal(tmp_path, spec_of(pair), port_of(pair))


def test_a_bug_of_a_foreign_port_is_found_with_its_line(tmp_path: Path):
    (pair,) = (pair for pair in PAIRS if pair.name == "gru_function")
    (tmp_path / "spec.py").write_text(spec_of(pair))
    (tmp_path / "port.py").write_text(port_of(pair, "reset_before"))
    found = verify_port(tmp_path / "spec.py", tmp_path / "port.py", trials=1)
    assert found.verdict == "different"
    lines = port_of(pair).splitlines()
    (line,) = (i for i, text in enumerate(lines, 1) if text.strip().startswith("inner ="))
    assert found.change is not None
    assert found.change.line is not None
    assert line <= found.change.line <= line + 2, found  # in the step of the scan
    assert "reset gate" in found.change.why
    assert found.change.module == "blocks.1.gru"
