"""What `orbax.checkpoint.v1.training.Checkpointer` does not do, for which t2t_jax/training/checkpoints.py is there.

When one of these tests fails with a later Orbax, the library can take over that part.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import pytest

from t2t_jax.weights.orbax_messages import quiet_orbax
from tests.support.full_disk import on_full_disk

ARRAYS = {"a": np.random.default_rng(0).random((50, 50))}


@pytest.fixture(autouse=True)
def _quiet():
    with quiet_orbax():
        yield


def test_a_flipped_bit_is_read_in_silence(tmp_path: Path):
    """In most places of an array's file; ours compares SHA-256 digests."""
    with ocp.training.Checkpointer(tmp_path) as checkpointer:
        checkpointer.save_checkpointables(1, {"model": ARRAYS})
    file = max((path for path in tmp_path.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    like = {"model": {name: np.empty(array.shape) for name, array in ARRAYS.items()}}
    with ocp.training.Checkpointer(tmp_path) as checkpointer:
        read = checkpointer.load_checkpointables(1, like)["model"]["a"]
    assert (read != ARRAYS["a"]).sum() == 1


def test_a_step_that_is_saved_again_is_deleted_first(tmp_path: Path):
    """A disk that is full, or a process that is killed, then leaves none; ours exchanges both at the end."""
    before = f"""
import orbax.checkpoint.experimental.v1 as ocp
from t2t_jax.weights.orbax_messages import quiet_orbax
from tests.jax.training.test_orbax_checkpointer import ARRAYS
quiet = quiet_orbax()
quiet.__enter__()
checkpointer = ocp.training.Checkpointer({str(tmp_path)!r})
checkpointer.save_checkpointables(1, {{"model": ARRAYS}})
"""
    then = 'checkpointer.save_checkpointables(1, {"model": ARRAYS}, overwrite=True)'
    assert "File too large" in on_full_disk(before, then)
    with ocp.training.Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.latest is None


KILLED = """
import os, sys
import orbax.checkpoint.experimental.v1 as ocp
from tests.jax.training.test_orbax_checkpointer import ARRAYS
keep_one = ocp.training.preservation_policies.LatestN(1)
checkpointer = ocp.training.Checkpointer(sys.argv[1], preservation_policy=keep_one)
checkpointer.save_checkpointables(1, {"model": ARRAYS})
deleting, removed = [], []

def watch(event, arguments):
    if event == "shutil.rmtree" and str(arguments[0]) == os.path.join(sys.argv[1], "1"):
        deleting.append(event)
    if event == "os.remove" and deleting:
        removed.append(event)
        if len(removed) == 3:
            os._exit(9)

sys.addaudithook(watch)
checkpointer.save_checkpointables(2, {"model": ARRAYS})
checkpointer.wait()
"""


def test_of_a_process_killed_while_it_deletes_a_half_is_left_under_its_name(tmp_path: Path):
    """Ours is renamed first, and so is never taken for a checkpoint."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, check=False)
    assert done.returncode == 9, done.stderr
    with ocp.training.Checkpointer(tmp_path) as checkpointer:
        assert [checkpoint.step for checkpoint in checkpointer.checkpoints] == [1, 2]
    whole, half = (sum(path.is_file() for path in (tmp_path / step).rglob("*")) for step in ("2", "1"))
    assert half < whole
