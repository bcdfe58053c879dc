"""`metrics.jsonl`: on a disk that is full, and read back by the run that continues it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from t2t_common.workdir.lock import LostWorkdirError
from t2t_common.workdir.writers import JsonLines, read_lines
from tests.support.full_disk import on_full_disk

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
def test_a_damaged_line_is_kept_aside_and_told_and_all_others_stay(tmp_path: Path, damage: bytes):
    path = written(tmp_path / "metrics.jsonl", damage, b'{"step": 5}')
    assert read_lines(path) == [*LINES, {"step": 5}]
    said: list[str] = []
    lines = JsonLines(path, first_step=5, say=said.append)
    lines.write({"step": 6})
    lines.close(None)
    assert read_lines(path) == [*LINES, {"step": 5}, {"step": 6}]
    aside = path.with_name("metrics.jsonl.damaged")
    assert aside.read_bytes() == damage + b"\n"
    assert said == ["metrics.jsonl: line 4 is damaged: kept in metrics.jsonl.damaged, all others stay"]
    JsonLines(path, first_step=2, say=said.append).close(None)
    assert (read_lines(path), len(said)) == (LINES[:2], 1)


def test_one_flipped_bit_costs_no_other_line(tmp_path: Path):
    """Whichever it is: every line that is not the flipped one is there, and what is not is kept aside, and told."""
    sound = [{"step": step, "loss": 1 / step} for step in range(1, 7)]
    content = b"".join(json.dumps(line).encode() + b"\n" for line in sound)
    path, aside = tmp_path / "metrics.jsonl", tmp_path / "metrics.jsonl.damaged"
    for bit in range(0, 8 * len(content), 31):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        aside.unlink(missing_ok=True)
        said: list[str] = []
        JsonLines(path, first_step=6, say=said.append).close(None)
        harmed = 2 if content[bit // 8] == ord("\n") else 1
        assert sum(line in read_lines(path) for line in sound) >= len(sound) - harmed, bit
        kept = [*path.read_bytes().splitlines(), *(aside.read_bytes().splitlines() if said else [])]
        later = b'{"step": 7, "loss": 0.16666666666666666}'  # as if written after the checkpoint
        assert {bytes(line) for line in flipped.split(b"\n")} - {b"", later} == {*kept} - {later}, bit
        assert aside.exists() == bool(said)


def test_a_step_beyond_the_checkpoint_among_others_is_damage(tmp_path: Path):
    """One bit makes 2 of 3, or 19 of 11: such a line is not one that the run will write again."""
    path, said = tmp_path / "metrics.jsonl", []
    path.write_text('{"step": 1}\n{"step": 9, "loss": 2}\n{"step": 3}\n{"step": 4}\n')
    JsonLines(path, first_step=3, say=said.append).close(None)
    assert [line["step"] for line in read_lines(path)] == [1, 3]
    assert path.with_name("metrics.jsonl.damaged").read_text() == '{"step": 9, "loss": 2}\n'
    assert len(said) == 1


def test_the_log_of_a_run_without_a_checkpoint_is_kept(tmp_path: Path):
    path, said = written(tmp_path / "metrics.jsonl", b'{"step": 4, "lo'), []
    before = path.read_bytes()
    for times in (1, 2):
        lines = JsonLines(path, first_step=0, say=said.append)
        assert read_lines(path) == []
        path.write_bytes(before)
        lines.close(ValueError())
        assert len(said) == times
    assert path.with_name("metrics.jsonl.old").read_bytes() == 2 * (before + b"\n")
    assert said[0] == (
        "metrics.jsonl belongs to a run without a checkpoint: kept as metrics.jsonl.old, as this run starts at step 1"
    )


def test_a_log_that_is_deleted_while_the_run_writes_it_is_put_back_and_told(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    lines = JsonLines(path, first_step=0)
    lines.write({"step": 1})
    path.unlink()
    with pytest.raises(LostWorkdirError, match="was deleted while the run wrote it, and put back: the same command"):
        lines.write({"step": 2})
    assert read_lines(path) == [{"step": 1}]
    with pytest.raises(LostWorkdirError, match="was replaced by another file while the run wrote it"):
        lines.close(None)


def test_a_log_that_is_deleted_after_the_last_line_is_told_of_at_the_end(tmp_path: Path):
    (workdir := tmp_path / "run").mkdir()
    lines = JsonLines(workdir / "metrics.jsonl", first_step=0)
    lines.write({"step": 1})
    shutil.rmtree(workdir)
    with pytest.raises(LostWorkdirError, match="run was deleted during the run"):
        lines.close(None)
    JsonLines(tmp_path / "metrics.jsonl", first_step=0).close(ValueError("why the run ended"))
    assert not workdir.exists()


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
from t2t_common.workdir.lock import LostWorkdirError
from t2t_common.workdir.writers import JsonLines
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
