"""Tables on the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.table import Table

from t2t_common.io.terminal import make_console


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """The lines of a table in Markdown."""
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    yield from (f"| {' | '.join(row)} |" for row in rows)


def show(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table on the terminal."""
    table = Table(*columns)
    for row in rows:
        table.add_row(*row)
    make_console().print(table)
