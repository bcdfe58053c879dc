"""Every command line of the house: one look, every option with its default, mistakes one line and exit code 2."""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from parity.commands import installed
from parity.commands.dispatch import OWN
from t2t_common.io import cli

ROOT = Path(__file__).parents[1]
PACKAGES = ("t2t_config", "t2t_common", "t2t_torch", "t2t_jax", "t2t_parity", "parity")
EXPECTED = {"train", "evaluate", "predict", "export"}
LISTS = {"t2t_jax", "t2t_torch"}
"""They list the commands of a package and run the one that is named (tests/common/io/test_commands.py)."""
ESCAPE = "\x1b"


def programs() -> list[str]:
    """All modules that `python -m` runs."""
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if 'if __name__ == "__main__"' in path.read_text():
                found.append(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__"))
    return found


def main_of(program: str) -> Callable[[Sequence[str]], int]:
    module = f"{program}.__main__" if (ROOT / program.replace(".", "/")).is_dir() else program
    return importlib.import_module(module).main


def help_of(command: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    program, *words = command
    with pytest.raises(SystemExit) as end:
        main_of(program)([*words, "--help"])
    assert end.value.code in (0, None)
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out


def commands() -> list[list[str]]:
    """The programs with their subcommands, as they list them; of recipes, one."""
    found = []
    for program in (program for program in programs() if program not in LISTS):
        if program == "parity":
            found += [[program, name] for name in (*OWN, *installed.commands())]
        else:
            found.append([program, "digits"] if program.endswith(".train") else [program])
    return found


def options_of(text: str) -> list[str]:
    """The entries of a help text as it goes into a pipe: names, then all that is said of them, each in one line."""
    entries: list[str] = []
    for line in text.splitlines():
        if re.match(r"  [\[{]*[A-Z]{2}|  --?\w", line):
            entries.append(line.strip())
        elif line.startswith("   ") and line.strip() and entries:
            entries[-1] += f" {line.strip()}"
    return entries


ALL = commands()


def test_the_programs_are_found():
    assert {f"t2t_torch.{name}" for name in EXPECTED} | {f"t2t_jax.{name}" for name in EXPECTED} <= set(programs())
    assert {"parity", "t2t_jax.data", "t2t_jax.compile"} <= set(programs())
    assert [["parity", name] for name in ("check", "doctor", "convert", "selftest")] == [
        command for command in ALL if command[-1] in ("check", "doctor", "convert", "selftest")
    ]


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.mark.parametrize("command", ALL, ids=" ".join)
def test_help_has_one_look_and_tells_every_default(command: list[str], capsys: pytest.CaptureFixture[str]):
    text = help_of(command, capsys)
    assert text.startswith(f"usage: python -m {' '.join(command)} [-h]")
    assert ESCAPE not in text  # capsys is no terminal
    usage, *described = text.split("\n options ")[0].split("\n\n")
    assert len("".join(described)) > 40, "no word of what it does"
    entries = [entry for entry in options_of(text) if not entry.startswith("-h, --help")]
    values = " ".join(entry.split("  ")[0] for entry in entries)
    assert not re.search(r"\{None|\[\w+ \[|\b(STR|PATH)\b", values), "types of Python in place of FILE, DIR, NAME"
    listed = {word for entry in entries for word in re.findall(r"--(?!no-)\w[\w-]*", entry.split("  ")[0])}
    assert listed >= set(re.findall(r"--(?!no-)\w[\w-]*", usage))
    assert entries or command == ["parity", "doctor"]
    for entry in entries:
        said = re.fullmatch(r"(.*?) \((default: .*|required)\)", entry)
        assert said, f"no default is told: {entry}"
        assert re.search(r"[a-z]{2,}.*\.$", re.sub(r"^(--[\w-]+,? )+", "", said[1])), f"nothing is said: {entry}"


@pytest.mark.parametrize("program", programs())
def test_a_program_alone_says_how_it_is_called(program: str, capsys: pytest.CaptureFixture[str]):
    with contextlib.suppress(SystemExit):
        assert main_of(program)(["--help"]) == cli.OK
    printed = capsys.readouterr()
    assert f"python -m {program}" in printed.out
    assert ESCAPE not in printed.out
    assert printed.err == ""


@pytest.mark.parametrize("command", ALL, ids=" ".join)
def test_mistakes_are_one_line_and_exit_code_two(command: list[str], capsys: pytest.CaptureFixture[str]):
    program, *words = command
    assert cli.run(main_of(program), [*words, "--no-such-option", "1"]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert "--no-such-option" in printed.err or "missing: " in printed.err
    assert not re.search(r"[\u2500-\u257f]|----", printed.err), "remains of a box"
    assert not re.search(r"Unrecognized|Missing|Value error|For full helptext|Argument helptext", printed.err)
    assert printed.out == ""


class _Terminal:
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("command", [["t2t_torch.predict", "--help"], ["parity", "doctor"]], ids=" ".join)
@pytest.mark.parametrize("no_color", ["", "1"], ids=["colour", "NO_COLOR"])
def test_colours_are_for_terminals_that_want_them(command: list[str], no_color: str, monkeypatch: pytest.MonkeyPatch):
    import parity.doctor

    monkeypatch.setattr(parity.doctor, "measure_traps", lambda: [])
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setattr(sys, "stdout", stream := _Terminal())
    program, *words = command
    with contextlib.suppress(SystemExit):
        main_of(program)(words)
    styled = re.findall(r"\x1b\[[\d;]*m", stream.text)
    assert bool(styled) == (no_color == ""), styled


def test_a_terminal_report_has_no_colour_where_none_is_wanted(monkeypatch: pytest.MonkeyPatch):
    from parity.__main__ import main

    call: Any = ["check", "t2t_vit_micro", "--img-size", "32", "--num-classes", "3", "--level", "forward"]
    monkeypatch.setattr(sys, "stdout", stream := _Terminal())
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(call) == 0
    assert "EQUAL" in stream.text
    assert re.findall(r"\x1b\[[\d;]*m", stream.text) == []
