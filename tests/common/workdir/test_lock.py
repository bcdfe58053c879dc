from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from t2t_common.workdir.lock import LOCK_FILE, LostWorkdirError, is_locked, locked

HOLD = """
import sys, time
from pathlib import Path
from t2t_common.workdir.lock import locked
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


def test_a_link_is_never_followed(tmp_path: Path):
    """What it leads to would be written over."""
    workdir, precious = tmp_path / "run", tmp_path / "precious"
    workdir.mkdir()
    precious.write_text("years of work")
    lock = workdir / LOCK_FILE
    for link, says in ((lock.symlink_to, "is a link to another file"), (lock.hardlink_to, "a hard link: delete it")):
        link(precious)
        with pytest.raises(ValueError, match=says), locked(workdir):
            pass
        lock.unlink()
    lock.symlink_to(tmp_path / "nothing")
    with pytest.raises(ValueError, match="is a link to another file"), locked(workdir):
        pass
    assert precious.read_text() == "years of work"
    assert not (tmp_path / "nothing").exists()


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / LOCK_FILE)
    with pytest.raises(ValueError, match="is not a regular file: delete it"), locked(tmp_path):
        pass


def test_a_lock_that_is_removed_is_taken_again_and_told(tmp_path: Path):
    with locked(tmp_path) as lock:
        assert lock.check() is None
        (tmp_path / LOCK_FILE).unlink()
        said = lock.check()
        assert said is not None
        assert "was removed during the run: taken again" in said
        assert lock.check() is None
        with pytest.raises(ValueError, match=f"in use by process {os.getpid()} of"), locked(tmp_path):
            pass


def test_of_two_runs_one_ends_when_the_lock_is_removed_and_taken_by_the_other(tmp_path: Path):
    with locked(tmp_path) as first:
        (tmp_path / LOCK_FILE).unlink()
        with locked(tmp_path) as second:
            with pytest.raises(LostWorkdirError, match=r"cannot be taken again \(.* in use by process .*this run ends"):
                first.check()
            assert second.check() is None


def test_a_workdir_that_is_gone_is_told_of(tmp_path: Path):
    (workdir := tmp_path / "run").mkdir()
    with locked(workdir) as lock:
        (workdir / LOCK_FILE).unlink()
        workdir.rmdir()
        with pytest.raises(LostWorkdirError, match="run was deleted during the run"):
            lock.check()
    assert not workdir.exists()


WITHOUT_FCNTL = """
import os, random, sys, types
from pathlib import Path

taken = set()

def lock_descriptor(descriptor, blocking):  # filelock's own, for Windows, cannot run here
    found = os.fstat(descriptor).st_ino
    return found not in taken and not taken.add(found)

sys.modules["fcntl"] = None
sys.modules["filelock"] = types.SimpleNamespace(lock_descriptor=lock_descriptor)
del os.uname, os.register_at_fork
from t2t_common.workdir.lock import locked
with locked(Path(sys.argv[1])) as lock:
    print(lock.check())
    try:
        with locked(Path(sys.argv[1])):
            print("twice")
    except ValueError as error:
        print(error)
"""


def test_where_there_is_no_fcntl_another_lock_of_the_system_is_taken(tmp_path: Path):
    """As on Windows."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_FCNTL, str(tmp_path)], capture_output=True, text=True, check=True
    )
    first, second = done.stdout.splitlines()
    assert first == "None"
    assert "is in use by process" in second
