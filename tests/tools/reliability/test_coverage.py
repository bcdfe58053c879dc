"""The campaign that counts branches: what ran and what did not, in child processes too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from t2t_common.io import cli
from tests.support.clean_env import PACKAGES
from tools.reliability import coverage, record

COUNTS = {"statements": 6, "missing_statements": 1, "branches": 4, "missing_branches": 1}
NONE = dict.fromkeys(coverage.COUNTS, 0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of a process that imports little, and whose child calls `soft_split_grids`."""
    folder = tmp_path_factory.mktemp("coverage")
    child = "from t2t_config.shapes import soft_split_grids; soft_split_grids((32, 32))"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    script = folder / "script.py"
    script.write_text(code)
    environ = {**os.environ, "COVERAGE_FILE": str(folder / ".coverage"), "PYTHONPATH": str(record.ROOT)}
    command = [sys.executable, "-m", "coverage", "run", str(script)]
    subprocess.run(command, cwd=record.ROOT, env=environ, check=True)
    return folder


Files = dict[str, dict[str, int]]


@pytest.fixture(scope="module")
def files(data: Path) -> Files:
    before = sorted(data.iterdir())
    files = coverage.measured(data)
    assert sorted(data.iterdir()) == before
    return files


def test_what_a_child_process_ran_counts(files: Files):
    shapes, never = files["t2t_config/shapes.py"], files["parity/measure/gates.py"]
    assert 0 < shapes["missing_statements"] < shapes["statements"]
    assert 0 < shapes["missing_branches"] < shapes["branches"]
    assert never["missing_statements"] == never["statements"] > 0
    assert {Path(name).parts[0] for name in files} == {"parity", *PACKAGES}


def test_the_result_names_packages_and_files_below(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(coverage, "measured", lambda folder: {tmp_path: files}[folder])
    target = tmp_path / "coverage.json"
    assert cli.run(coverage.main, ["--data", str(tmp_path), "--json", str(target)]) == cli.FAILED
    result = json.loads(target.read_text())
    assert result["packages"]["parity"]["limit"] == 95
    assert result["packages"]["parity"]["holds"] is False
    assert "parity/measure/gates.py" in {row["file"] for row in result["files_below_their_limit"]}
    assert "t2t_torch" in capsys.readouterr().out


def test_percentages_are_never_rounded_up_to_the_limit():
    assert coverage.percent([COUNTS]) == 80.0
    assert coverage.percent([COUNTS, NONE]) == 80.0
    assert coverage.percent([NONE]) == 100.0
    close = {"statements": 100_000, "missing_statements": 5_001, "branches": 0, "missing_branches": 0}
    assert coverage.percent([close]) == 94.9
    files = {"parity/a.py": close, "t2t_jax/b.py": close, "t2t_jax/c.py": COUNTS}
    rows = coverage.by_package(files)
    assert [rows["parity"]["holds"], rows["t2t_jax"]["holds"]] == [False, True]
    assert [row["file"] for row in coverage.below(files)] == ["t2t_jax/c.py", "parity/a.py"]


def test_a_failing_suite_is_no_success(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    whole = {f"{package}/a.py": {**NONE, "statements": 3} for package in ("parity", "t2t_jax")}
    monkeypatch.setattr(coverage, "measured", lambda folder: whole)
    for passed, code in ((True, cli.OK), (False, cli.FAILED)):
        monkeypatch.setattr(coverage, "run_suite", lambda folder, workers, passed=passed: passed)
        assert cli.run(coverage.main, ["--json", str(tmp_path / "a.json")]) == code
        assert json.loads((tmp_path / "a.json").read_text())["every_test_passed"] is passed


def test_a_folder_without_data_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.run(coverage.main, ["--data", str(tmp_path), "--json", str(tmp_path / "a.json")]) == cli.MISUSED
    assert "holds no data of coverage" in capsys.readouterr().err
