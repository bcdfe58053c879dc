"""The short form of the faults of process groups: `python -m tools.reliability.faults` has them all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.reliability import faults
from tools.reliability.run_faults import group_faults
from tools.reliability.run_faults.runs import PACKAGES, Ended, Lab, Package


@pytest.mark.parametrize("package", PACKAGES)
def test_a_group_that_is_asked_to_stop_saves_and_leaves_nobody(
    package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(group_faults, "TIMES", 1)
    # 48 steps: of a run of 24, only five were left when the signal was sent, and a busy machine finished them first.
    row = faults.harm(Lab(package, tmp_path, epochs=6), "group is asked to stop", group_faults.group_is_asked_to_stop)
    assert "failure" not in row, row["failure"]
    assert (row["times"], row["survived"], row["lines_that_differ"], row["arrays_that_differ"]) == (1, 1, 0, [])


@pytest.mark.parametrize("package", PACKAGES)
def test_a_killed_run_leaves_nobody(package: Package, tmp_path: Path):
    ends = list(group_faults.killed_leaves_nobody(Lab(package, tmp_path, epochs=30), tmp_path / "run"))
    assert ends == [Ended(end.seconds, "nobody is left") for end in ends if end is not None]
    assert len(ends) == 2
