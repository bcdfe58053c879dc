"""`python -m parity verify`: its output, its exit codes, and errors of one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from parity.commands.dispatch import main
from parity.commands.process import run
from tests.parity.verify.forged import HONEST, SPEC, WRONG


def verify(folder: Path, port: str, *options: str) -> int:
    (folder / "spec.py").write_text("print('hello')\n" + SPEC)
    (folder / "port.py").write_text(port)
    return run(main, ["verify", str(folder / "spec.py"), str(folder / "port.py"), "--trials", "1", *options])


def test_an_equal_port(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert verify(tmp_path, HONEST, "--json") == 0
    found = json.loads(capsys.readouterr().out)  # the specification has printed, to stderr
    assert (found["verdict"], found["exit_code"]) == ("equal", 0)


def test_a_different_port(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert verify(tmp_path, WRONG, "--no-locate") == 1
    assert "port.py: DIFFERENT (the outputs differ)" in capsys.readouterr().out


def test_a_port_that_cannot_be_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert verify(tmp_path, "x = 1\n1 / 0\n", "--json") == 2
    found = json.loads(capsys.readouterr().out)
    assert found["change"]["line"] == 2
    assert "ZeroDivisionError" in found["reason"]


def test_errors_are_of_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(main, ["verify", str(tmp_path / "none.py"), str(tmp_path / "none.py")]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("error: ")
    assert err.count("\n") == 1
