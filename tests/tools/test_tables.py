"""The same rows on the terminal and in Markdown."""

from __future__ import annotations

import pytest

from tools.tables import markdown, show

COLUMNS, ROWS = ("name", "s"), [("a", "1.5"), ("b", "20")]


def test_a_table_in_markdown():
    assert list(markdown(COLUMNS, ROWS)) == ["| name | s |", "|---|---|", "| a | 1.5 |", "| b | 20 |"]
    assert list(markdown(COLUMNS, ())) == ["| name | s |", "|---|---|"]


def test_a_table_on_the_terminal_has_every_cell(capsys: pytest.CaptureFixture[str]):
    show(COLUMNS, ROWS)
    shown = capsys.readouterr().out
    assert all(cell in shown for row in (COLUMNS, *ROWS) for cell in row)
