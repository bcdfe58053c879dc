"""Signs of life: on a terminal, on stderr, gone at the end; nothing in pipes; no colour where none is wanted."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
import rich.console

import t2t_torch
import t2t_torch.evaluate
from t2t_common import terminal
from tests.small_data import CLASSES, write_idx_folder


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal_as_stderr(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """To be called inside a test: pytest itself sets stderr anew after fixtures."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys, "stderr", stream := _Terminal())
    return stream


def test_nothing_goes_into_pipes(capsys: pytest.CaptureFixture[str]):
    with terminal.status("waiting") as status:
        status.update("still waiting")
    assert list(terminal.bar(range(3), "counting", 3)) == [0, 1, 2]
    terminal.make_console().print("[bold red]text")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("text\n", "")


def test_a_notebook_is_as_a_pipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(rich.console, "_is_jupyter", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert rich.console.Console().is_jupyter
    test_nothing_goes_into_pipes(capsys)


def test_a_terminal_sees_what_goes_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    stderr = terminal_as_stderr(monkeypatch)
    with terminal.status("waiting"):
        pass
    assert list(terminal.bar(range(3), "counting", 3)) == [0, 1, 2]
    assert "waiting" in stderr.getvalue()
    assert "counting" in stderr.getvalue()
    assert capsys.readouterr().out == ""


def test_no_color(monkeypatch: pytest.MonkeyPatch):
    stderr = terminal_as_stderr(monkeypatch)
    terminal.make_console(stderr=True).print("[bold red]text")
    assert stderr.getvalue() == "\x1b[1;31mtext\x1b[0m\n"
    monkeypatch.setenv("NO_COLOR", "1")
    terminal.make_console(stderr=True).print("[bold red]text")
    assert stderr.getvalue().endswith("m\ntext\n")


def test_an_evaluation_shows_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    stderr = terminal_as_stderr(monkeypatch)
    model = t2t_torch.create_model("t2t_vit_micro", img_size=16, in_chans=1, num_classes=CLASSES)
    t2t_torch.save_checkpoint(model, tmp_path / "w.pth")
    options = ["--model", "t2t_vit_micro", "--checkpoint", str(tmp_path / "w.pth"), "--data"]
    assert t2t_torch.evaluate.main([*options, str(write_idx_folder(tmp_path / "data")), "--batch-size", "7"]) == 0
    shown = stderr.getvalue()
    assert "loading" in shown
    assert "evaluating" in shown
    assert capsys.readouterr().out.startswith("top-1 ")
