"""Every row of docs/threats.md names tests that are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.support.pages.code_blocks import ROOT

PAGE = (ROOT / "docs" / "threats.md").read_text()
ROWS = re.findall(r"^\| (.+) \| .+ \| (.+) \|$", PAGE, re.MULTILINE)
THREATS = [(threat, shown) for threat, shown in ROWS if shown != "shown by"]


def functions(path: Path) -> set[str]:
    """Names of the functions of a file."""
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_every_row_is_found():
    lines = [line for line in PAGE.splitlines() if "tests/" in line]
    assert len(lines) == len(THREATS) >= 20


@pytest.mark.parametrize(("threat", "shown"), THREATS, ids=[threat[:40] for threat, _ in THREATS])
def test_what_shows_it_is_there(threat: str, shown: str):
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", shown)
    assert len(named) == shown.count("`") / 2 >= 1, f"{threat}: every test is written as `tests/FILE.py::test_NAME`"
    for path, name in named:
        assert name in functions(ROOT / path), f"{threat}: {path} has no {name}"
