"""The campaign of properties: it finds them all, counts their examples, and says when one does not hold."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tools.reliability.properties import files
from tools.reliability.record import ROOT, known_defects

PROPERTIES = """
from hypothesis import assume, given, settings
from hypothesis import strategies as st

@settings(max_examples=30, derandomize=True, database=None)
@given(st.integers())
def test_that_holds(x):
    assume(x % 2)
    assert x + 1 > x

@settings(max_examples=30, derandomize=True, database=None)
@given(st.integers())
def test_that_does_not_hold(x):
    assert x < 100

def test_without_examples():
    assert False
"""
RUN = """
import pathlib, sys
from tools.reliability import properties
properties.files = lambda: [pathlib.Path(sys.argv[1])]
sys.exit(properties.cli.run(properties.main, ["--profile", "short", "--only", sys.argv[2], "--json", sys.argv[3]]))
"""


def campaign(path: Path, only: str) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-c", RUN, str(path), only, str(path.with_suffix(".json"))]
    return subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, check=False)


def test_examples_are_counted_and_counterexamples_told(tmp_path: Path):
    path = tmp_path / "test_some.py"
    path.write_text(PROPERTIES)
    (tmp_path / "conftest.py").write_text("from tests.support import profiles\nprofiles.register()\n")
    assert campaign(path, "not does").returncode == 0
    done = campaign(path, "does")
    assert done.returncode == 1
    assert "x=100" in done.stdout  # the counterexample, shrunk
    record = json.loads(path.with_suffix(".json").read_text())
    found = {name.rpartition("/")[2]: row for name, row in record["properties"].items()}
    holds, does_not = (found.pop(f"test_some.py::test_that_{name}") for name in ("holds", "does_not_hold"))
    assert (holds["profile"], holds["examples"], holds["counterexamples"]) == ("short", 30, 0)  # kept
    assert does_not["counterexamples"] == 1
    assert found == {}
    assert record["counterexamples"] == 1
    nothing = campaign(path, "nowhere")
    assert nothing.returncode == 2
    assert "no properties were run" in nothing.stderr


def test_the_files_with_properties_are_found():
    names = {str(path.relative_to(ROOT)) for path in files()}
    assert {
        "tests/parity/carry/test_convert.py",
        "tests/t2t_parity/test_pair.py",
        "tests/jax/models/test_registry.py",
    } <= names
    assert "tests/parity/proof/test_check.py" not in names


def test_every_defect_names_a_test_that_is_there():
    for defect in known_defects("properties"):
        path, _, name = defect.test.partition("::")
        assert f"def {name}(" in (ROOT / path).read_text()
