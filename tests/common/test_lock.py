from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from t2t_common.lock import LOCK_FILE, is_locked, locked

HOLD = """
import sys, time
from pathlib import Path
from t2t_common.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_run_is_refused_and_names_the_first(tmp_path: Path):
    with locked(tmp_path):
        for _ in range(2):  # being refused does not free it
            with pytest.raises(ValueError, match=rf"is in use by process {os.getpid()} of .*: wait"), locked(tmp_path):
                pass
    with locked(tmp_path):
        pass


def test_a_killed_process_frees_the_folder(tmp_path: Path):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match=f"in use by process {process.pid} of"), locked(tmp_path):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        with locked(tmp_path):
            assert (tmp_path / LOCK_FILE).read_text().startswith(f"process {os.getpid()} of")


def test_a_folder_that_cannot_be_locked_is_named(tmp_path: Path):
    (tmp_path / LOCK_FILE).mkdir()
    with pytest.raises(ValueError, match=r"cannot write to .*: choose another folder"), locked(tmp_path):
        pass


def test_who_only_asks_changes_nothing(tmp_path: Path):
    assert not is_locked(tmp_path)
    assert not list(tmp_path.iterdir())
    with locked(tmp_path):
        assert is_locked(tmp_path)
        with pytest.raises(ValueError, match=f"in use by process {os.getpid()} of"), locked(tmp_path):
            pass
    assert not is_locked(tmp_path)


def test_a_worker_that_outlives_its_killed_parent_does_not_hold_the_folder(tmp_path: Path):
    forking = HOLD.replace("    time.sleep", "    import os\n    print(os.fork() or '', flush=True)\n    time.sleep")
    with subprocess.Popen([sys.executable, "-c", forking, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        said = [process.stdout.readline().strip() for _ in range(3)]  # of both, in any order
        process.kill()
        process.wait()
        worker = next(int(word) for word in said if word.isdigit())
        os.kill(worker, 0)  # it lives
        try:
            with locked(tmp_path):
                pass
        finally:
            os.kill(worker, signal.SIGKILL)
