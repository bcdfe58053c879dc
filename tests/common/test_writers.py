"""`metrics.jsonl`: on a disk that is full, and read back by the run that continues it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from t2t_common.writers import JsonLines, read_lines
from tests.full_disk import on_full_disk

LINES = [{"step": step, "loss": 1 / step} for step in (1, 2, 3)]
DAMAGED = (
    b'{"loss": 1}',
    b"[1]",
    b"3",
    b'{"step": "4"}',
    b'{"step": 4, "lo',
    b'{"step": ' + b"[" * 100_000,
    b"\xff\xfe",
)


def written(path: Path, *more: bytes) -> Path:
    path.write_bytes(b"".join(json.dumps(line).encode() + b"\n" for line in LINES) + b"\n".join(more))
    return path


@pytest.mark.parametrize("damage", DAMAGED, ids=range(len(DAMAGED)))
def test_lines_are_read_up_to_one_that_makes_no_sense(tmp_path: Path, damage: bytes):
    path = written(tmp_path / "metrics.jsonl", damage, b'{"step": 5}')
    assert read_lines(path) == LINES
    lines = JsonLines(path, first_step=2)
    lines.write({"step": 3})
    lines.close(None)
    assert read_lines(path) == [*LINES[:2], {"step": 3}]


def test_no_file_no_lines(tmp_path: Path):
    assert read_lines(tmp_path / "metrics.jsonl") == []


def test_a_link_is_replaced_and_never_followed(tmp_path: Path):
    path, elsewhere = tmp_path / "metrics.jsonl", tmp_path / "elsewhere"
    path.symlink_to(elsewhere)
    JsonLines(path, first_step=0).close(None)
    assert not elsewhere.exists()
    assert not path.is_symlink()


def test_a_full_disk_is_an_error_of_one_line_and_the_next_run_drops_the_line_that_is_cut(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    before = f"""
from pathlib import Path
from t2t_common.writers import JsonLines
lines = JsonLines(Path({str(path)!r}), first_step=0)
lines.write({{"step": 1, "loss": 0.5}})
"""
    then = """
try:
    lines.write({"step": 2, "names": "x" * 5000})
finally:
    lines.close(None)  # does not fail in its turn
"""
    said = on_full_disk(before, then)
    assert said == f"cannot write {path} (File too large): free space, the same command continues the run\n"
    assert path.stat().st_size == 4096
    JsonLines(path, first_step=1).close(None)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"step": 1, "loss": 0.5}]
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"cannot write .*/none/metrics.jsonl \(No such file or directory\): free space"
    ):
        JsonLines(tmp_path / "none" / "metrics.jsonl", first_step=0)
