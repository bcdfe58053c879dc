"""Reports are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from parity.report.text_file import saved


def test_without_a_path_the_text_comes_back() -> None:
    assert saved("text", None) == "text"


def test_a_file_is_written_whole_and_a_link_is_replaced(tmp_path: Path) -> None:
    target, link = tmp_path / "kept", tmp_path / "report.json"
    target.write_text("kept")
    link.symlink_to(target)
    assert saved("größer \ud800", link) == "größer \ud800"
    assert link.read_text(encoding="utf-8") == "größer \\ud800"
    assert not link.is_symlink()
    assert target.read_text() == "kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "report.json"]


def test_what_cannot_be_written_is_named_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"cannot write .*none/a: create the folder"):
        saved("text", tmp_path / "none" / "a")
    with pytest.raises(ValueError, match="it is a folder"):
        saved("text", tmp_path)
    with pytest.raises(ValueError, match="a device or a pipe"):
        saved("text", os.devnull)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "a").write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match=r"cannot write .*a \(No space left on device\)"):
        saved("text", tmp_path / "a")
    assert (tmp_path / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
