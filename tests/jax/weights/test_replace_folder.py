"""Folders that take each other's place."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from t2t_jax.weights import replace_folder


def fail_to_rename(monkeypatch: pytest.MonkeyPatch, folder: Path | str) -> None:
    """Lets the renaming of `folder`, or of any of that name, fail."""
    rename = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if folder in (self, self.name):
            raise OSError("no rename")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)


@pytest.mark.parametrize("in_one_step", [True, False])
def test_two_folders_swap_their_names(tmp_path: Path, in_one_step: bool, monkeypatch: pytest.MonkeyPatch):
    if not in_one_step:
        monkeypatch.setattr(replace_folder, "_exchanged", lambda one, other: False)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    replace_folder.exchange(tmp_path / "a", tmp_path / "b")
    assert [(tmp_path / name / "file").read_text() for name in ("a", "b")] == ["b", "a"]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_second_rename_that_fails_leaves_both_where_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(replace_folder, "_exchanged", lambda one, other: False)
    one, other = tmp_path / ".unfinished-1" / "new", tmp_path / "b"
    for folder in (one, other):
        folder.mkdir(parents=True)
        (folder / "file").write_text(folder.name)
    fail_to_rename(monkeypatch, one)
    with pytest.raises(OSError, match="no rename"):
        replace_folder.exchange(one, other)
    assert (one / "file").read_text() == "new"
    assert (other / "file").read_text() == "b"
    assert len(list(tmp_path.iterdir())) == 2


def test_what_died_between_two_renames_is_found_again(tmp_path: Path):
    path, aside = tmp_path / "b", replace_folder.set_aside(tmp_path / "b")
    replace_folder.recover(path)
    assert not path.exists()
    aside.mkdir()
    (aside / "file").write_text("old")
    replace_folder.recover(path)
    assert (path / "file").read_text() == "old"
    aside.mkdir()
    replace_folder.recover(path)  # died after the second one: the new one is there
    assert (path / "file").read_text() == "old"
    assert not aside.exists()


def test_nobody_ever_finds_none(tmp_path: Path):
    """Holds only where the swap is one step."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    done = threading.Event()
    missing = 0

    def logging() -> None:
        nonlocal missing
        while not done.is_set():
            missing += not (tmp_path / "b").exists()

    watcher = threading.Thread(target=logging)
    watcher.start()
    for _ in range(3000):
        replace_folder.exchange(tmp_path / "a", tmp_path / "b")
    done.set()
    watcher.join()
    assert missing == 0
