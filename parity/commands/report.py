"""`python -m parity report FILE`: render a report again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from parity.commands.options import Parser
from parity.commands.show import add_targets, make_console, show, targets_of


def main(args: Sequence[str], prog: str) -> int:
    """Render a report written by `check --json` in another format."""
    parser = Parser(prog, main.__doc__ or "")
    parser.add_argument("source", metavar="SOURCE", type=Path, help="JSON file to read.")
    add_targets(parser, "html", "junit")
    options = parser.parse_args(args)
    from parity.report.report import read_report

    targets = targets_of(options)
    return show(read_report(options.source), targets, make_console())
