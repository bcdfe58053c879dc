"""What the commands of the tools have in common."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from tools.command import parse, save


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command line."""

    count: int = 1
    """How many."""
    json: Path | None = None
    """File for the result."""


def test_options_are_parsed_and_the_file_is_checked_before_anything_is_done(tmp_path: Path):
    assert parse(Options, [], "tools.x", None) == Options()
    file = tmp_path / "a.json"
    assert parse(Options, ["--count", "3", "--json", str(file)], "tools.x", "Text.") == Options(count=3, json=file)
    with pytest.raises(ValueError, match=r"--count: 'x' is not a whole number .*python -m tools.x --help"):
        parse(Options, ["--count", "x"], "tools.x", "")
    with pytest.raises(FileNotFoundError, match="create the folder"):
        parse(Options, ["--json", str(tmp_path / "none" / "a.json")], "tools.x", "")


def test_figures_are_written_as_json_where_a_file_is_given(tmp_path: Path):
    save(None, {"a": 1})
    assert list(tmp_path.iterdir()) == []
    save(tmp_path / "a.json", {"é": [1.5]})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"é": [1.5]}
    assert "é" in text
