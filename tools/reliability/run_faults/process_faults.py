"""Processes that die, hang, are asked to stop twice, or write where another does; clocks that jump."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from t2t_common.workdir.record import Record
from t2t_jax.checkpoint import LIMIT_SECONDS
from tools.reliability.run_faults.disk_faults import SECONDS
from tools.reliability.run_faults.runs import Ended, Lab, NotSurvivedError, Running, clear_end, count_lines

WORKER_TIMEOUT = 120
PEER_SECONDS = 240.0
"""JAX takes a process for dead after 100 s without a sign of life; the rest is for a busy machine."""
OURS = "^error: another process of this run has died"
OF_JAX = "Terminating process because the JAX distributed service detected fatal errors"
OF_ORBAX = "^error: cannot write .* the system clock"
OF_TENSORSTORE = "Check failed: .* staleness_bound_"
DAY = 86_400
FAKETIME = "*/faketime/libfaketime.so.1"


def worker_dies(lab: Lab, workdir: Path) -> Iterator[Ended | None]:
    """SIGKILL to a worker process that prepares batches."""
    with lab.start(workdir, "--data-workers=2") as run:
        run.await_lines(8)
        os.kill(run.children()[0], signal.SIGKILL)
        yield clear_end(run, "^error: reading the images failed", SECONDS)


def worker_hangs(lab: Lab, workdir: Path) -> Iterator[Ended | None]:
    """SIGSTOP to a worker process; no batch comes any more."""
    with lab.start(workdir, "--data-workers=2", f"--data-timeout={WORKER_TIMEOUT}") as run:
        run.await_lines(8)
        os.kill(run.children()[0], signal.SIGSTOP)
        yield clear_end(run, f"^error: no batch of images arrived for {WORKER_TIMEOUT} s", SECONDS + WORKER_TIMEOUT)


def killed_beside_worker(lab: Lab, workdir: Path) -> Iterator[Ended | None]:
    """SIGKILL to a run whose worker hangs: what is left of it may not keep the workdir."""
    with lab.start(workdir, "--data-workers=1") as run:
        run.await_lines(8)
        workers = run.children()
        os.kill(workers[0], signal.SIGSTOP)
        run.kill()
    try:
        lab.finish(workdir)
        yield None
    finally:
        for worker in workers:
            with contextlib.suppress(ProcessLookupError):  # workers end with their run
                os.kill(worker, signal.SIGKILL)


def second_writer(lab: Lab, workdir: Path) -> Iterator[Ended | None]:
    """The same command again, while the run goes on."""
    with lab.start(workdir) as first:
        first.await_lines(2)
        os.kill(first.processes[0].pid, signal.SIGSTOP)  # or it would be over before the second has begun
        with lab.start(workdir, log="second") as second:
            ended = clear_end(second, f"^error: .* is in use by process {first.processes[0].pid}", SECONDS)
        os.kill(first.processes[0].pid, signal.SIGCONT)
        first.end()
        yield ended


def sigterm_twice(lab: Lab, workdir: Path) -> Iterator[Ended | None]:
    """SIGTERM, and again at once, after 20 ms, after 200 ms; then Ctrl-C twice."""
    for pause in (0.0, 0.02, 0.2):
        with lab.start(workdir) as run:
            run.await_lines(4)
            send_twice(signal.SIGTERM, run.processes[0].pid, pause)
            yield clear_end(run, "^stopped by SIGTERM, saved at step", SECONDS, code=0)
    with lab.start(workdir) as run:
        run.await_lines(4)
        send_twice(signal.SIGINT, run.processes[0].pid, 0.001)
        yield clear_end(run, "^stopped$", SECONDS, code=130)


def send_twice(number: signal.Signals, pid: int, pause: float) -> None:
    """The signal, and `pause` seconds later again."""
    os.kill(pid, number)
    time.sleep(pause)
    os.kill(pid, number)


def clock_jumps(lab: Lab, workdir: Path) -> Iterator[Ended | None]:
    """The system's time goes a day forwards, then two back, each while a run goes on, which is killed then; it is
    continued in the past.

    A checkpoint of t2t_jax that is just being written need not come through: Orbax takes its limits from the system's
    time, and tensorstore may end the process by SIGABRT where that goes back.
    """
    library = find_faketime()
    offset = lab.folder / "offset"
    offset.write_text("+0")
    environment = {
        **{"LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(offset), "FAKETIME_NO_CACHE": "1"},
        # Only the system clock: by default the library turns the waits of threads, too, into ones that may never end.
        **{"FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_FORCE_MONOTONIC_FIX": "0"},
    }
    for days in (1, -1):
        with lab.start(workdir, environment=environment) as run:
            run.await_lines(8)
            # In one step: half a file is any time, and timers that are set by it fail.
            (successor := offset.with_suffix(".next")).write_text(f"{days * DAY:+d}")
            successor.replace(offset)
            yield after_a_jump(run)
    lab.finish(workdir, environment=environment)
    record = Record.read(workdir)
    if record is None or datetime.fromisoformat(record.starts[-1].until) > datetime.now(UTC) - timedelta(hours=12):
        raise NotSurvivedError("the clock did not jump: libfaketime does not work here")
    yield None


def after_a_jump(run: Running) -> Ended | None:
    """None if the run goes on, for eight lines, after which it is killed; else how it ended."""
    enough = count_lines(run.workdir) + 8
    run.wait_until(lambda: count_lines(run.workdir) >= enough, LIMIT_SECONDS + SECONDS)
    if not run.has_ended():
        if count_lines(run.workdir) < enough:
            raise NotSurvivedError(f"hangs after a jump of the clock; it said: {run.said()[-2000:]}")
        run.kill()
        return None
    code = run.end()[0]
    return clear_end(run, OF_TENSORSTORE if code == -signal.SIGABRT else OF_ORBAX, 1, code=code)


def find_faketime() -> Path:
    """The library that gives a process a time of its own.

    Raises:
        ValueError: it is not installed.
    """
    found = sorted(Path("/usr/lib").glob(FAKETIME))
    if not found:
        raise ValueError("clocks cannot be faked here: apt-get install libfaketime")
    return found[0]


def peer_dies(lab: Lab, workdir: Path) -> Iterator[Ended | None]:
    """Two processes train together, one gets SIGKILL: the second, then the first.

    JAX's own service ends a process that waits for a barrier, or that has lost the first process, by SIGABRT.
    """
    for victim in (1, 0):
        with lab.start(workdir) as run:
            run.await_lines(8)
            run.processes[victim].kill()
            start = time.perf_counter()
            code = run.end(PEER_SECONDS)[1 - victim]
            ended = clear_end(run, OF_JAX if code == -signal.SIGABRT else OURS, 1, code=code, index=1 - victim)
            yield dataclasses.replace(ended, seconds=round(time.perf_counter() - start, 1))


def one_of_two_is_asked_to_stop(lab: Lab, workdir: Path) -> Iterator[Ended | None]:
    """Two processes train together, one gets SIGTERM twice: both stop after the same step."""
    with lab.start(workdir) as run:
        run.await_lines(8)
        send_twice(signal.SIGTERM, run.processes[1].pid, 0.02)
        codes = run.end(SECONDS)
        if codes != [0, 0]:
            raise NotSurvivedError(f"exit codes {codes}, expected 0 of both: {run.said()[-2000:]}")
        yield clear_end(run, "^stopped by .*, saved at step", SECONDS, code=0)
