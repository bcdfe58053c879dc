"""Render a report as text: the module tree, expanded at failures, then summary, failures, causes and verdict."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from parity.report import view
from parity.report.findings import Cause, Findings
from parity.report.view import FAILED, INHERITED, INSIDE, OK, Node, describe, figure_text, place

STYLES = {OK: "green", INHERITED: "yellow", INSIDE: "red", FAILED: "bold red"}
STYLE = re.compile(r"(\x1b\[[\d;]*m)")
"""What switches colours and styles on and off."""

WIDE = 100
"""Minimum width in columns to show the modules' types and the error growth."""


def render(report: Findings, width: int | None = None, color: bool = False) -> str:
    """Render the whole report, at most `width` columns wide (default: the width of the terminal)."""
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=color, no_color=not color, highlight=False)
    tables = [_tree(report, wide=console.width >= WIDE), _summary(report)]
    for table in [*tables, _formats(report)] if report.formats else tables:
        console.print(table, "")
    if report.trajectory is not None:
        console.print(Text(view.training(report.trajectory)))
    for line in (*_failures(report, 20), *cause_lines(report.causes)):
        console.print(Text(line), soft_wrap=True)  # wrapped lines cannot be searched
    if report.unpaired:
        console.print(f"{len(report.unpaired)} calls without a partner, judged with the module around them")
    for line in report.power.lines() if report.power is not None else ():
        console.print(Text(line), soft_wrap=True)
    for note in report.notes:
        console.print(Text(f"NOTE {note}"), soft_wrap=True)
    console.print(Text(report.verdict, style="bold green" if report.passed else "bold red"), soft_wrap=True)
    return "".join(f"{_shown(line.rstrip(), color)}\n" for line in stream.getvalue().splitlines())


def _shown(line: str, color: bool) -> str:
    """Return `line` with unprintable characters escaped, which could control the terminal; names may have any."""
    if line.isprintable():
        return line
    parts = STYLE.split(line) if color else [line]
    return "".join(
        part if color and STYLE.fullmatch(part) else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in part)
        for part in parts
    )


def brief(report: Findings) -> str:
    """Return the verdict, the causes, the first failures and the notes as text."""
    notes = [f"NOTE {note}" for note in report.notes]
    return "\n".join([report.verdict, *cause_lines(report.causes), *_failures(report, 8), *notes])


def _table(title: str, *columns: str) -> Table:
    # No padding, since the box already separates columns by one blank.
    return Table(
        *columns,
        title=title,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )


def _tree(report: Findings, wide: bool) -> Table:
    figures = [f for f in view.visible_figures(report) if wide or f.attribute != "growth"]
    table = _table("Modules, relF")
    table.add_column("module", overflow="fold")
    if wide:
        table.add_column("type", overflow="fold")
    for figure in figures:
        table.add_column(figure.title.replace(" ", "\n"), justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    if not report.passed:
        table.caption = f"{INSIDE}: a module inside fails; {INHERITED}: fails by the fault of others"
    for guide, node, closed in _lines(view.tree(report)):
        name = f"{guide}{node.label}" + (f" (+{node.size})" if closed else "")
        types = [node.type] if wide else []
        table.add_row(Text(name), *types, *map(node.text, figures), Text(node.status, style=STYLES[node.status]))
    return table


def _lines(node: Node, depth: int = 0, before: str = "", here: str = "") -> Iterator[tuple[str, Node, bool]]:
    """Yield, for each visible module, the tree guides, the module, and whether its children are hidden."""
    opened = node.is_open(depth)
    yield before + here, node, bool(node.children) and not opened
    below = before + {"├ ": "│ ", "└ ": "  "}.get(here, "")
    for child in node.children if opened else ():
        yield from _lines(child, depth + 1, below, "└ " if child is node.children[-1] else "├ ")


def _summary(report: Findings) -> Table:
    table = _table("Summary", "check", "precision")
    for column in ("count", "worst", "gate"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("where", overflow="fold")
    for group in view.groups(report):
        row = group.worst
        figures = (str(len(group.rows)), figure_text(row.error), figure_text(row.gate))
        style = None if group.passed else STYLES[FAILED]
        table.add_row(group.label, group.precision, *figures, Text(place(row.name)), style=style)
    return table


def _formats(report: Findings) -> Table:
    table = _table("Reduced precision, relF to float32", "measured", "format", *report.sides, "cap", "")
    for row in report.formats:
        status = OK if row.passed else FAILED
        figures = map(figure_text, (row.error, row.torch_error, row.cap))
        table.add_row(Text(row.name), row.format, *figures, Text(status, style=STYLES[status]))
    return table


def _failures(report: Findings, most: int) -> list[str]:
    """Return a line for each root failure (at most `most`), and the number of further failures."""
    shown = view.culprits(report)[:most]
    rest = len(report.failures) - len(shown)
    return [f"FAILED {describe(row, report.sides[1])}" for row in shown] + ([f"... and {rest} more"] if rest else [])


def cause_lines(causes: Sequence[Cause]) -> list[str]:
    """Return one line per cause."""
    return [
        f"CAUSE {place(cause.module)}: {cause.description} ({cause.switch}: relF {figure_text(cause.error_before)} "
        f"becomes {figure_text(cause.error_after)})"
        for cause in causes
    ]
