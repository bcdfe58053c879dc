from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from t2t_common.workdir.writers import METRICS_FILE
from t2t_jax.checkpoint import save_model
from tools.reliability.run_faults.runs import (
    NotSurvivedError,
    Running,
    arrays,
    clear_end,
    count_differing_lines,
    differing_arrays,
)


def test_one_bit_is_seen(tmp_path: Path):
    one, other = tmp_path / "one", tmp_path / "other"
    found = {"a": np.ones(3, np.float32), "b": np.zeros(2, np.float32)}
    save_model(one, found)
    save_model(other, {**found, "b": np.float32([0.0, -0.0])})
    assert differing_arrays(arrays("t2t_jax", one), arrays("t2t_jax", other)) == ["average: b", "weights: b"]
    assert differing_arrays(found, {"a": found["a"]}) == ["b"]
    for workdir, loss in ((one, 0.5), (other, 0.5000000000000001)):
        (workdir / METRICS_FILE).write_text(json.dumps({"step": 1, "loss": loss, "seconds": loss}) + "\n")
    assert count_differing_lines(one, other) == 1
    (other / METRICS_FILE).write_text(json.dumps({"step": 1, "loss": 0.5, "seconds": 7}) + "\n")
    assert count_differing_lines(one, other) == 0
    (other / METRICS_FILE).write_text("")
    assert count_differing_lines(one, other) == 1


def ran(tmp_path: Path, code: str) -> Running:
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-c", code], stdout=file, stderr=subprocess.STDOUT)
    return Running([process], tmp_path, [log])


def test_one_clear_line_is_told_from_all_else(tmp_path: Path):
    line = "import sys; print('error: the disk is full', file=sys.stderr)"
    assert clear_end(ran(tmp_path, f"{line}; sys.exit(2)"), "^error: .*full", 60).words == "the disk is full"
    for code in (f"{line}; sys.exit(1)", f"{line}; {line}; sys.exit(2)", "raise SystemExit(2)", "raise ValueError"):
        with pytest.raises(NotSurvivedError, match="expected 2 and one line like"):
            clear_end(ran(tmp_path, code), "^error: .*full", 60)
    hangs = ran(tmp_path, "import time; time.sleep(600)")
    with pytest.raises(NotSurvivedError, match=r"hangs for 0\.1 s"):
        clear_end(hangs, "^error", 0.1)
    hangs.kill()
