"""The lines of a run, read back by the run that continues it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from t2t_common.writers import JsonLines, read_lines

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
