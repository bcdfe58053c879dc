"""Folders that take each other's place."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from t2t_jax import replace


@pytest.mark.parametrize("in_one_step", [True, False])
def test_two_folders_swap_their_names(tmp_path: Path, in_one_step: bool, monkeypatch: pytest.MonkeyPatch):
    if not in_one_step:
        monkeypatch.setattr(replace, "_exchanged", lambda one, other: False)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    replace.exchange(tmp_path / "a", tmp_path / "b")
    assert [(tmp_path / name / "file").read_text() for name in ("a", "b")] == ["b", "a"]
    assert len(list(tmp_path.iterdir())) == 2


def test_nobody_ever_finds_none(tmp_path: Path):
    """Holds only where the swap is one step."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    done = threading.Event()
    missing = 0

    def watch() -> None:
        nonlocal missing
        while not done.is_set():
            missing += not (tmp_path / "b").exists()

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(3000):
        replace.exchange(tmp_path / "a", tmp_path / "b")
    done.set()
    watcher.join()
    assert missing == 0
