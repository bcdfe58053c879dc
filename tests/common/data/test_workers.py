"""Processes that prepare batches, with real ones: not stopped before the run, gone after it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tools.reliability.run_faults.runs import group_members

STARTS = """
import multiprocessing, sys, threading, time
from t2t_common.data.workers import end_with_the_run, leave_signals_to_the_run, wake_with_parent

def work():
    end_with_the_run()
    print("works", multiprocessing.current_process().pid, flush=True)
    time.sleep(600)

def start(method):
    leave_signals_to_the_run()
    context = multiprocessing.get_context(method)
    context.set_forkserver_preload(["t2t_common.data.fork_server"])
    for _ in range(2):
        context.Process(target=work, daemon=True).start()

if __name__ == "__main__":
    starter = threading.Thread(target=start, args=sys.argv[1:])
    starter.start()
    starter.join()  # to Linux, it is the parent of what it has started: its end may not be theirs
    time.sleep(600)
"""
LIMIT = 60


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.parametrize("stopped", [False, True], ids=["works", "is stopped"])
def test_workers_do_not_go_by_signals_of_their_group_and_end_with_the_run(method: str, stopped: bool, tmp_path: Path):
    """All of them hold the pipe that they write to: it ends when the last is gone, the fork server too."""
    script = tmp_path / "run.py"
    script.write_text(STARTS)
    command = [sys.executable, str(script), method]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, process_group=0, env=environment) as run:
        try:
            workers = [int(word) for word in read(run, 2).split() if word.isdigit()]
            assert len(workers) == 2
            for number in (signal.SIGTERM, signal.SIGINT):
                for worker in workers:
                    os.kill(worker, number)
            if stopped:
                os.kill(workers[0], signal.SIGSTOP)
            for worker in workers:
                status = dict(line.split(":\t", 1) for line in Path(f"/proc/{worker}/status").read_text().splitlines())
                waiting = int(status["ShdPnd"], 16)
                assert all(waiting >> (number - 1) & 1 for number in (signal.SIGTERM, signal.SIGINT))
            assert set(workers) <= group_members(run.pid).keys()
            run.kill()
            assert read(run, None) == b""
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)


def read(run: subprocess.Popen[bytes], lines: int | None) -> bytes:
    """What a process says: so many lines, or all until nobody can say more."""
    assert run.stdout is not None
    said, until = b"", time.monotonic() + LIMIT
    while lines is None or said.count(b"\n") < lines:
        assert select.select([run.stdout], [], [], max(0.0, until - time.monotonic()))[0], f"{said!r}, and no end"
        part = os.read(run.stdout.fileno(), 4096)
        if not part:
            break
        said += part
    return said
