"""Start-up times are those of what a user runs; nothing is judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from t2t_common.io import cli
from tools.benchmarks import start


def test_every_run_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    small = [*start.runs("t2t_vit_micro").items()]
    monkeypatch.setattr(start, "runs", lambda model: dict([small[0], small[4]]))
    path = tmp_path / "start.json"
    assert cli.run(start.main, ["--model", "t2t_vit_micro", "--rounds", "1", "--json", str(path)]) == cli.OK
    found = json.loads(path.read_text())
    assert list(found) == ["import t2t_config", "training step of t2t_vit_micro, traced and compiled"]
    assert all(len(seconds) == 1 for seconds in found.values())
    assert found["import t2t_config"][0] > 0
    assert "median" in capsys.readouterr().out


def test_each_run_has_a_folder_of_its_own():
    program = "import sys, pathlib; pathlib.Path(sys.argv[1], 'new').mkdir()"
    assert start.measure(["-c", program, start.FOLDER]) > 0
    assert start.measure(["-c", program, start.FOLDER]) > 0
    assert ["examples/demo.py", start.FOLDER] in start.runs("t2t_vit_micro").values()


def test_a_run_that_fails_is_an_error():
    with pytest.raises(ValueError, match="ZeroDivisionError"):
        start.measure(["-c", "1 / 0"])


def test_what_cannot_be_done(capsys: pytest.CaptureFixture[str]):
    assert cli.run(start.main, ["--rounds", "0"]) == cli.MISUSED
    assert "at least one" in capsys.readouterr().err
