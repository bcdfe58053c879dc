"""Files that are there whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from t2t_common.io.files import check_target, replace_file, same_file, write_json, write_text


def test_a_failed_write_keeps_the_old_file(tmp_path: Path):
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def fail(error: Exception) -> None:
        with replace_file(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(RuntimeError):
        fail(RuntimeError())
    with pytest.raises(ValueError, match=r"cannot write .*file.txt \(disk full\)"):
        fail(OSError(28, "disk full"))
    assert path.read_text() == "old"
    write_text(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_impossible_targets(tmp_path: Path):
    with pytest.raises(ValueError, match="it is a folder"):
        check_target(tmp_path)
    with pytest.raises(FileNotFoundError, match="create the folder"):
        check_target(tmp_path / "none" / "file")


def test_devices_and_pipes_stay_what_they_are(tmp_path: Path):
    """Who may write to /dev would make a file of /dev/null, for everybody."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    for path in (tmp_path / "pipe", tmp_path / "link", Path("/dev/null")):
        with pytest.raises(ValueError, match=f"cannot write {path}: it is a device or a pipe"):
            write_text(path, "text")
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "link").is_symlink()


def test_no_file_is_no_target_and_nothing_is_written(tmp_path: Path):
    check_target(None)
    write_json(None, {"a": 1})
    assert list(tmp_path.iterdir()) == []
    write_json(tmp_path / "a.json", {"a": [1, None]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1, None]}


def test_a_file_that_was_replaced_or_removed_is_not_the_open_one(tmp_path: Path):
    path = tmp_path / "log"
    with path.open("w") as file:
        assert same_file(file, path)
        path.rename(tmp_path / "other")
        assert not same_file(file, path)
        path.write_text("")
        assert not same_file(file, path)
        assert same_file(file, tmp_path / "other")
