"""Each change of the campaign is one, and is named; losses of runs are compared. With real runs: faults.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from t2t_common.data import data_identity, open_source
from t2t_common.data.fingerprint import Identity, data_changes
from tools.reliability.changed import CHANGES, compare_losses
from tools.reliability.run_faults.runs import NotSurvivedError, write_images


def identity_of(data: Path) -> Identity:
    return data_identity(open_source(data, "train"), open_source(data, "val"))


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_seen(change: str, tmp_path: Path):
    before = identity_of(write_images(tmp_path))
    CHANGES[change](tmp_path)
    assert data_changes(before, identity_of(tmp_path)) != ""


def test_steps_and_losses_are_compared(tmp_path: Path):
    def run(name: str, *lines: tuple[int, float]) -> Path:
        (tmp_path / name).mkdir()
        text = "".join(json.dumps({"step": step, "loss": loss}) + "\n" for step, loss in lines)
        (tmp_path / name / "metrics.jsonl").write_text(text)
        return tmp_path / name

    whole = run("whole", (1, 2.0), (2, 1.0))
    compare_losses(run("close", (1, 2.0), (2, 1.001)), whole)
    for name, lines in {
        "twice": [(1, 2.0), (1, 2.0), (2, 1.0)],
        "missing": [(2, 1.0)],
        "far": [(1, 2.0), (2, 1.1)],
    }.items():
        with pytest.raises(NotSurvivedError, match="in place of"):
            compare_losses(run(name, *lines), whole)
