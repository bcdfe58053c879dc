from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from t2t_jax.checkpoint import save_model
from t2t_jax.report import METRICS_FILE
from tests.train.kill_campaign import Options, campaign, count_differing_lines, differing_arrays


def test_a_killed_run_ends_as_the_one_in_peace(tmp_path: Path):
    """The short form: two kills, one of them inside a checkpoint that is being written."""
    result = campaign(Options(kills=2, in_write=1, epochs=12), tmp_path)
    assert result["kills"] >= 2
    assert result["kills_inside_write"] >= 1
    assert result["lines_that_differ"] == 0
    assert result["arrays_that_differ"] == []
    assert result["lines_compared"] == 12 * 8 + 12 + 4


def test_the_campaign_sees_one_bit(tmp_path: Path):
    one, other = tmp_path / "one", tmp_path / "other"
    arrays = {"a": np.ones(3, np.float32), "b": np.zeros(2, np.float32)}
    save_model(one, arrays)
    save_model(other, {**arrays, "b": np.float32([0.0, -0.0])})
    assert differing_arrays(one, other) == ["b", "b"]  # once trained, once averaged
    for workdir, loss in ((one, 0.5), (other, 0.5000000000000001)):
        (workdir / METRICS_FILE).write_text(json.dumps({"step": 1, "loss": loss, "seconds": loss}) + "\n")
    assert count_differing_lines(one, other) == 1
    (other / METRICS_FILE).write_text(json.dumps({"step": 1, "loss": 0.5, "seconds": 7}) + "\n")
    assert count_differing_lines(one, other) == 0
