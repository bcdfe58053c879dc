"""Which checkpoints of a run are kept, which is the best one, and which are left out as damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from t2t_common.workdir.checkpoints import BEST, TOP1, UNFINISHED, CheckpointFolder
from t2t_common.workdir.folder import CHECKPOINTS


class Checkpoints(CheckpointFolder):
    """A checkpoint is a text: its accuracy, or nothing for none."""

    suffix = ".txt"

    def __init__(self, workdir: Path, keep: int = 1, *, keep_best: bool = True, is_main_process: bool = True) -> None:
        super().__init__(workdir, keep=keep, keep_best=keep_best, is_main_process=is_main_process)

    def save(self, step: int, top1: float | None = None) -> None:
        self._begin(step, {} if top1 is None else {TOP1: top1})
        self._path(step).write_text("" if top1 is None else str(top1))
        self._finish()

    def _steps(self) -> list[int]:
        return sorted(int(path.stem) for path in self._folder.glob("*.txt") if path.stem.isdigit())

    def _read_metadata(self, step: int) -> dict[str, Any]:
        text = self._path(step).read_text()
        return {TOP1: float(text)} if text else {}

    def _remove(self, step: int) -> None:
        self._path(step).unlink()

    def _sweep(self) -> None:
        for leftover in self._folder.glob(f"{UNFINISHED}*"):
            leftover.unlink()


def names(workdir: Path) -> list[str]:
    return sorted(path.name for path in (workdir / CHECKPOINTS).iterdir())


def test_the_latest_and_the_earliest_best_stay(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step, top1 in enumerate((50.0, 70.0, None, 70.0, 60.0, None), 1):
        checkpoints.save(step, top1)
    assert names(tmp_path) == ["2.txt", "5.txt", "6.txt", f"{BEST}.txt"]
    assert (tmp_path / CHECKPOINTS / f"{BEST}.txt").read_text() == "70.0"
    assert checkpoints.latest_step == 6
    assert [checkpoints.is_best(top1) for top1 in (70.0, 70.1)] == [False, True]


def test_a_new_process_knows_the_best(tmp_path: Path):
    Checkpoints(tmp_path).save(1, 70.0)
    again = Checkpoints(tmp_path)
    assert not again.is_best(60.0)
    again.save(2, 60.0)
    assert names(tmp_path) == ["1.txt", "2.txt", f"{BEST}.txt"]


def test_without_keep_best_none_is_linked(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep_best=False)
    for step in (1, 2):
        checkpoints.save(step, 70.0 / step)
    assert names(tmp_path) == ["2.txt"]
    assert not checkpoints.is_best(100.0)


def test_a_damaged_one_is_left_out_and_set_aside(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, 50.0)
    checkpoints.save(2, 60.0)
    (tmp_path / CHECKPOINTS / "2.txt").write_text("no number")
    again = Checkpoints(tmp_path, keep=2)
    assert again.latest_step == 1
    assert again.metadata == {TOP1: 50.0}
    assert names(tmp_path) == ["1.txt", f"{BEST}.txt", "damaged-2.txt"]
    (tmp_path / CHECKPOINTS / "1.txt").write_text("no number")
    with pytest.raises(ValueError, match="or any before it"):
        _ = Checkpoints(tmp_path).metadata


@pytest.mark.parametrize("is_main_process", [True, False])
def test_only_the_first_process_removes_what_was_left(is_main_process: bool, tmp_path: Path):
    (tmp_path / CHECKPOINTS).mkdir()
    (tmp_path / CHECKPOINTS / f"{UNFINISHED}1").touch()
    Checkpoints(tmp_path, is_main_process=is_main_process)
    assert names(tmp_path) == ([] if is_main_process else [f"{UNFINISHED}1"])
