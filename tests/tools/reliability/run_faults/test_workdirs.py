"""The short form of the faults of workdirs: `python -m tools.reliability.faults` has them all, for both packages."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.reliability import faults
from tools.reliability.run_faults import workdir_faults
from tools.reliability.run_faults.disk_faults import Trial
from tools.reliability.run_faults.runs import Lab, Package


@pytest.mark.parametrize(
    ("package", "trial"),
    [
        ("t2t_torch", workdir_faults.lock_taken),
        ("t2t_torch", workdir_faults.workdir_gone),
        ("t2t_jax", workdir_faults.log_deleted),
        ("t2t_jax", workdir_faults.checkpoints_renamed),
    ],
)
def test_a_harmed_workdir_is_told_of_and_its_run_continued_bit_for_bit(package: Package, trial: Trial, tmp_path: Path):
    row = faults.harm(Lab(package, tmp_path, epochs=3), "workdir", trial)
    assert "failure" not in row
    assert (row["times"], row["survived"], row["lines_that_differ"], row["arrays_that_differ"]) == (1, 1, 0, [])
