"""`metrics.jsonl` on a disk that is full. What its lines are: tests/train/test_report.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from t2t_common.writers import JsonLines
from tests.full_disk import on_full_disk


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
