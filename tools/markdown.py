"""Tables of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence


def header(*columns: str) -> Iterator[str]:
    """The first two lines of a table."""
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """All lines of a table."""
    yield from header(*columns)
    yield from (f"| {' | '.join(row)} |" for row in rows)
