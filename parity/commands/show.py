"""The files and the terminal that commands write reports to."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from parity.commands.process import FAILED, OK
from parity.report.text_file import check_target

if TYPE_CHECKING:
    from rich.console import Console

    from parity.report.report import Report

TARGETS = {
    "html": "File for the report as a single HTML page.",
    "json": "File for the complete report as JSON.",
    "junit": "File for the report as JUnit XML, for CI systems.",
}
"""Format -> the help text of the option that names its file."""


def add_targets(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add the options that name the files to write, by format."""
    for name in names:
        parser.add_argument(f"--{name}", type=Path, metavar="FILE", help=TARGETS[name])


def targets_of(options: argparse.Namespace) -> dict[str, Path]:
    """Return the files to write, by format, after checking that they can be written.

    Raises:
        FileNotFoundError, ValueError: See `check_target`.
    """
    targets = {name: path for name in TARGETS if (path := getattr(options, name, None)) is not None}
    for path in targets.values():
        check_target(path)
    return targets


def make_console() -> Console:
    """Return a console on stdout; without colours and styles if NO_COLOR (no-color.org) is set."""
    from rich.console import Console

    return Console(color_system=None if os.environ.get("NO_COLOR") else "auto")


def tell(console: Console, text: str) -> None:
    """Print a line with file names in it: nothing in it is markup, and it is not wrapped."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def show(report: Report, targets: dict[str, Path], console: Console) -> int:
    """Print the report, write it to the files, and return the exit code that its verdict has."""
    color = console.is_terminal and console.color_system is not None
    (console.file if color else sys.stdout).write(report.render(width=console.width, color=color))
    for name, path in targets.items():
        getattr(report, f"to_{name}")(path)
        tell(console, f"report written to {path}")
    return OK if report.passed else FAILED
