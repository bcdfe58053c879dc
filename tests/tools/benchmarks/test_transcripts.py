"""What commands print is kept as they print it; the commands are those of the pages (tests/docs/test_figures.py)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from t2t_common.io import cli
from tools.benchmarks import transcripts


def test_lines_are_kept_and_commands_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write, read = """python -c "open('a', 'w').write('3')\"""", """python -c "print(open('a').read() + '\\n  4')\""""
    monkeypatch.setattr(transcripts, "COMMANDS", (write, read))
    assert cli.run(transcripts.main, ["--json", str(tmp_path / "a.json")]) == cli.OK
    found = json.loads((tmp_path / "a.json").read_text())["transcripts"]
    assert {command: transcript["printed"] for command, transcript in found.items()} == {write: [], read: ["3", "  4"]}


def test_one_command_leaves_the_outputs_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(transcripts, "COMMANDS", ("python -c 'print(1)'", "python -c 'print(2)'"))
    file = tmp_path / "a.json"
    assert cli.run(transcripts.main, ["--json", str(file)]) == cli.OK
    kept = json.loads(file.read_text())
    kept["transcripts"] = {
        command: transcript | {"printed": ["old"]} for command, transcript in kept["transcripts"].items()
    }
    file.write_text(json.dumps(kept))
    assert cli.run(transcripts.main, ["--only", "(2)", "--json", str(file)]) == cli.OK
    found = json.loads(file.read_text())["transcripts"].values()
    assert [transcript["printed"] for transcript in found] == [["old"], ["2"]]
    file.write_text(json.dumps(kept | {"environment": {}}))
    assert cli.run(transcripts.main, ["--only", "(2)", "--json", str(file)]) == cli.MISUSED
    assert "another environment: run all commands" in capsys.readouterr().err


def test_a_command_that_fails_is_an_error(tmp_path: Path):
    with pytest.raises(ValueError, match="failed: ZeroDivisionError"):
        list(transcripts.transcripts(["python -c 1/0"], tmp_path))


def test_what_is_not_among_the_commands(capsys: pytest.CaptureFixture[str]):
    assert cli.run(transcripts.main, ["--only", "nothing"]) == cli.MISUSED
    assert "is in none of the commands" in capsys.readouterr().err
