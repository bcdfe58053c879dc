"""Which checkpoints of a run are kept: the latest ones and the best one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t2t_common.workdir.checkpoints import BEST, TOP1, UNFINISHED
from t2t_jax.checkpoint import CHECKPOINTS, find_checkpoint, load_model_state
from t2t_jax.training.checkpoints import TrainingCheckpoints
from tests.jax.training.test_checkpoints import names, save_all, state_at


def test_the_best_checkpoint_stays(tmp_path: Path):
    with TrainingCheckpoints(tmp_path, keep=2, keep_best=True) as checkpoints:
        assert checkpoints.is_best(0.0)
        save_all(checkpoints, {1: 50.0, 2: 70.0, 3: 60.0})
        save_all(checkpoints, {4: 70.0, 5: None, 6: 40.0})
    assert names(tmp_path) == ["2", "5", "6", BEST]
    best = tmp_path / CHECKPOINTS / BEST
    assert os.readlink(best) == "2"  # relative: the folder can be moved
    assert find_checkpoint(best) == tmp_path / CHECKPOINTS / "2"
    assert load_model_state(best).metadata == {TOP1: 70.0}
    np.testing.assert_array_equal(load_model_state(best, use_ema=False).arrays["a"], state_at(2).params["a"])
    np.testing.assert_array_equal(load_model_state(tmp_path, use_ema=False).arrays["a"], state_at(6).params["a"])

    best.unlink()  # the process died before it made the link
    with TrainingCheckpoints(tmp_path, keep=1, keep_best=True) as checkpoints:
        assert os.readlink(best) == "2"
        assert not checkpoints.is_best(70.0)
        assert checkpoints.is_best(70.1)
        save_all(checkpoints, {7: 80.0, 8: 75.0})
    assert names(tmp_path) == ["7", "8", BEST]
    assert os.readlink(best) == "7"


def test_without_keep_best_only_the_latest_stay(tmp_path: Path):
    with TrainingCheckpoints(tmp_path, keep=1, keep_best=True) as checkpoints:
        save_all(checkpoints, {1: 50.0, 2: 40.0})
    with TrainingCheckpoints(tmp_path, keep=1) as checkpoints:
        assert not checkpoints.is_best(100.0)
        save_all(checkpoints, {3: 30.0})
    assert names(tmp_path) == ["3"]


def test_a_checkpoint_that_was_being_deleted_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Killed while the old checkpoint was deleted, file by file."""
    original = shutil.rmtree

    def rmtree(path: Path, *args: Any, **kwargs: Any) -> None:
        if Path(path).name == f"{UNFINISHED}1":
            raise OSError("killed")
        original(path, *args, **kwargs)

    checkpoints = TrainingCheckpoints(tmp_path, keep=1)
    save_all(checkpoints, {1: None})
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", rmtree)
        with pytest.raises(ValueError, match=r"cannot write .*checkpoints \(killed\)"):
            save_all(checkpoints, {2: None})
    assert names(tmp_path) == [f"{UNFINISHED}1", "2"]
    assert TrainingCheckpoints(tmp_path, keep=1).latest_step == 2
    assert names(tmp_path) == ["2"]
