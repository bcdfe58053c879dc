"""Signs of life: on a terminal, on stderr, gone at the end; nothing in pipes; no colour where none is wanted."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest
import rich.console

import t2t_torch
import t2t_torch.evaluate
from t2t_common.io import cli, terminal
from t2t_common.run.reporter import Reporter
from tests.support.small_data import CLASSES, write_idx_folder


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


# ---- names that are orders ----

NAME = "bad[copy] [red]x[/red] :cat: \x1b]0;title\x07\x1b[2J.jpg"
SHOWN = "bad[copy] [red]x[/red] :cat: \\x1b]0;title\\x07\\x1b[2J.jpg"


def test_names_are_no_markup_and_give_no_orders(monkeypatch: pytest.MonkeyPatch):
    stderr = terminal_as_stderr(monkeypatch)
    with terminal.status(NAME):
        pass
    assert list(terminal.bar(range(3), NAME, 3)) == [0, 1, 2]
    shown = stderr.getvalue()
    assert SHOWN in shown
    assert not [order for order in ("\x07", "\x1b]", "\x1b[2J") if order in shown]


def test_a_run_says_names_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options = {"first_step": 0, "last_step": 1, "batch_size": 1, "log_every": 1}
    with Reporter(tmp_path, **options) as reporter:  # type: ignore[arg-type]
        reporter.say(f"skipped {NAME}")
        reporter.line(NAME, {"step": 1, "name": NAME})
    # rich 13 ends an empty progress bar with a line break.
    assert capsys.readouterr().out.rstrip("\n") == f"skipped {SHOWN}\n{SHOWN}"
    assert "\x1b" not in (tmp_path / "metrics.jsonl").read_text()


def test_whatever_a_command_prints_is_escaped(capsys: pytest.CaptureFixture[str]):
    def main(args: Sequence[str]) -> int:
        print(NAME, os.fsdecode(b"caf\xe9"))
        warnings.warn(NAME, stacklevel=1)
        raise ValueError(NAME)

    with pytest.warns(UserWarning, match="bad"):
        assert cli.run(main, []) == cli.MISUSED
    printed = capsys.readouterr()
    assert printed.out == f"{SHOWN} caf\\udce9\n"
    assert printed.err == f"error: {SHOWN}\n"


def test_colours_of_our_own_still_reach_a_terminal(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdout", stream := _Terminal())
    monkeypatch.setenv("TERM", "xterm-256color")

    def main(args: Sequence[str]) -> int:
        terminal.make_console().print("[bold red]text")
        sys.stdout.write("\rhalf")
        with terminal.unescaped_streams():
            print("\x1b[34m" + "wandb")
        return 0

    assert cli.run(main, []) == 0
    assert stream.getvalue() == "\x1b[1;31mtext\x1b[0m\n\rhalf\x1b[34mwandb\n"
    assert sys.stdout is stream


def test_a_terminal_that_knows_ascii_only(monkeypatch: pytest.MonkeyPatch):
    below = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(below, encoding="ascii", write_through=True))
    assert cli.run(lambda args: print("\u732b cat") or 0, []) == 0  # type: ignore[func-returns-value]
    assert below.getvalue() == b"\\u732b cat\n"
