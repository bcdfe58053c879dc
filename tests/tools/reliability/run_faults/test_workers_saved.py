from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tools.reliability import coverage, record

TEST = """
import atexit, os

def test_it():
    from t2t_config.shapes import soft_split_grids
    soft_split_grids((32, 32))
    atexit.register(os._exit, 0)  # as if killed: what coverage registered before never runs
"""


def test_a_worker_that_is_killed_at_its_end_counts(tmp_path: Path):
    (tmp_path / "test_it.py").write_text(TEST)
    environ = {**os.environ, "COVERAGE_FILE": str(tmp_path / ".coverage"), "PYTHONPATH": str(record.ROOT)}
    command = [
        sys.executable,
        "-m",
        "coverage",
        "run",
        "-m",
        "pytest",
        "-p",
        "tools.reliability.run_faults.workers_saved",
        "-n",
        "1",
    ]
    command += ["-c", "pyproject.toml", "--rootdir", str(record.ROOT), str(tmp_path / "test_it.py")]
    subprocess.run(command, cwd=record.ROOT, env=environ, check=True, stdout=subprocess.DEVNULL)
    shapes = coverage.measured(tmp_path)["t2t_config/shapes.py"]
    assert 0 < shapes["missing_statements"] < shapes["statements"]
    assert 0 < shapes["missing_branches"] < shapes["branches"]
