from __future__ import annotations

from pathlib import Path

from tools.reliability.run_faults.kills import kill_often
from tools.reliability.run_faults.runs import STEPS_PER_EPOCH, Lab


def test_a_killed_run_ends_as_the_one_in_peace(tmp_path: Path):
    """The short form: two kills, one of them inside a checkpoint that is being written. `t2t_torch` has a kill in
    tests/torch/test_train.py."""
    found = kill_often(Lab("t2t_jax", tmp_path, epochs=12), kills=2, in_write=1, say=print)
    assert found["times"] >= 2
    assert found["inside_a_checkpoint"] >= 1
    assert found["lines_compared"] == 12 * STEPS_PER_EPOCH + 12 + 4
    assert (found["lines_that_differ"], found["arrays_that_differ"]) == (0, [])
    assert found["arrays_compared"] > 50
