"""What the campaign of versions makes of what pytest and pip-audit say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tools.reliability import record
from tools.reliability.record import known_defects
from tools.reliability.versions import counts, run, verdict

TESTS = """
import pytest
@pytest.fixture
def broken(): raise OSError
def test_passes(): pass
def test_passes_too(): pass
def test_fails(): assert 0
def test_has_no_fixture(broken): pass
@pytest.mark.skip
def test_is_left_out(): pass
"""


def test_counts_are_pytests_own(tmp_path: Path):
    (tmp_path / "test_some.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml=tests.xml", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "1 failed, 2 passed, 1 skipped, 1 error" in done.stdout
    assert counts(tmp_path / "tests.xml") == {"passed": 2, "failed": 2, "skipped": 1}


def test_a_target_that_ran_no_test_has_no_result(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    (tmp_path / "tests.xml").write_text("of another run")
    with pytest.raises(ValueError, match="make no-such-target ran no test"):
        run("no-such-target", tmp_path)
    assert "no-such-target" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("code", "output", "said"),
    [
        (0, "No known vulnerabilities found\n", "none known"),
        (1, "Found 2 known vulnerabilities in 1 package\nName ...\n", "Found 2 known vulnerabilities in 1 package"),
        (
            1,
            "ERROR:pip_audit._cli:zipp: Dependency not found on PyPI\n",
            "not looked up: the database could not be reached",
        ),
    ],
)
def test_an_audit_that_could_not_look_is_not_clean(code: int, output: str, said: str):
    assert verdict(code, output) == said


def test_the_tests_of_the_defects_are_there():
    for defect in known_defects("versions"):
        path, _, name = defect.test.partition("::")
        assert f"def {name}(" in (record.ROOT / path).read_text()
