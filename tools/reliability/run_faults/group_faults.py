"""A run and the processes that it started: what stops all of them at once, and what may not leave one behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from tools.reliability.run_faults.disk_faults import SECONDS
from tools.reliability.run_faults.process_faults import WORKER_TIMEOUT
from tools.reliability.run_faults.runs import Ended, Lab, NotSurvivedError, Running, clear_end, group_members

TIMES = 3
READY_LINES = 16
"""More than there are batches ready in two workers, in queues and on the device."""
LEFT_SECONDS = 60.0
"""Until nobody is left; five are meant, the rest is for a busy machine. The row says how many it took."""


def group_is_asked_to_stop(lab: Lab, workdir: Path) -> Iterator[Ended | None]:
    """SIGTERM to a run and all that it has started, as schedulers send it: saved, exit code 0, nobody is left.

    First to what it has started alone, of which the run goes on to get batches, more than were ready.
    """
    for first in (True, *(TIMES - 1) * [False]):
        with lab.start(workdir, "--data-workers=2") as run:
            run.await_lines(3)
            main = run.processes[0].pid
            if first:
                for pid in group_members(main).keys() - {main}:
                    os.kill(pid, signal.SIGTERM)
                run.await_lines(READY_LINES)
            os.killpg(main, signal.SIGTERM)
            yield clear_end(run, "^stopped by SIGTERM, saved at step", SECONDS, code=0)
            wait_for_nobody(run)


def group_is_asked_twice(lab: Lab, workdir: Path) -> Iterator[Ended | None]:
    """The same, and again after 20 ms; then while the workers start."""
    with lab.start(workdir, "--data-workers=2") as run:
        run.await_lines(3)
        for _ in range(2):
            os.killpg(run.processes[0].pid, signal.SIGTERM)
            time.sleep(0.02)
        yield clear_end(run, "^stopped by SIGTERM, saved at step", SECONDS, code=0)
        wait_for_nobody(run)
    with lab.start(workdir, "--data-workers=2") as run:
        run.wait_until(lambda: bool(run.helpers()))
        os.killpg(run.processes[0].pid, signal.SIGTERM)
        yield clear_end(run, "^stopped by SIGTERM, saved at step", SECONDS, code=0)
        wait_for_nobody(run)


def killed_leaves_nobody(lab: Lab, workdir: Path) -> Iterator[Ended | None]:
    """SIGKILL to the run alone: while its workers prepare batches; while one of them hangs."""
    for hangs in (False, True):
        with lab.start(workdir, "--data-workers=2") as run:
            run.await_lines(3)
            if hangs:
                os.kill(run.children()[0], signal.SIGSTOP)
            run.processes[0].kill()
            run.processes[0].wait()
            yield Ended(wait_for_nobody(run), "nobody is left")


def timeout_leaves_nobody(lab: Lab, workdir: Path) -> Iterator[Ended | None]:
    """A worker hangs until the run ends for it: the others end too."""
    with lab.start(workdir, "--data-workers=2", f"--data-timeout={WORKER_TIMEOUT}") as run:
        run.await_lines(3)
        os.kill(run.children()[0], signal.SIGSTOP)
        ended = clear_end(run, f"^error: no batch of images arrived for {WORKER_TIMEOUT} s", SECONDS + WORKER_TIMEOUT)
        wait_for_nobody(run)
        yield ended


def wait_for_nobody(run: Running) -> float:
    """Seconds until no process is left that the run's first one started; what is left after `LEFT_SECONDS` is killed.

    Raises:
        NotSurvivedError: some were left.
    """
    start, group = time.perf_counter(), run.processes[0].pid
    while (left := group_members(group)) and time.perf_counter() - start < LEFT_SECONDS:
        time.sleep(0.1)
    took = round(time.perf_counter() - start, 1)
    if left:
        os.killpg(group, signal.SIGKILL)
        raise NotSurvivedError(f"{len(left)} processes are left {took} s after the run: {'; '.join(left.values())}")
    return took
