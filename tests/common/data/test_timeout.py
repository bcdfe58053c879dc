from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from t2t_common.data.timeout import TimeoutIterator

NEVER_ENDS = """
import time
from concurrent.futures import ThreadPoolExecutor
from t2t_common.io import cli
from t2t_common.data import timeout

pool = ThreadPoolExecutor(1)
def items():
    yield pool.submit(time.sleep, 600).result()
cli.run_and_end(lambda args: next(timeout.TimeoutIterator(items, 0.1)))
"""


def test_items_come_in_order_and_end():
    assert list(TimeoutIterator(lambda: iter(range(5)), 10)) == list(range(5))


def test_nothing_is_read_before_it_is_asked_for():
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(3):
            made.append(number)
            yield number

    patient = TimeoutIterator(items, 10)
    assert made == []
    assert next(patient) == 0
    time.sleep(0.05)
    assert made == [0]
    patient.close()


def test_an_item_that_does_not_come_ends_the_wait():
    hangs = threading.Event()
    start = time.monotonic()
    patient = TimeoutIterator(lambda: iter([1, 2] if hangs.wait() else []), 0.2)
    try:
        with pytest.raises(ValueError, match=r"no batch of images arrived for 0.2 s: check the disk .* command again"):
            next(patient)
        assert 0.2 <= time.monotonic() - start < 10
    finally:
        hangs.set()
        patient.close()


def test_a_worker_that_is_stopped_is_killed():
    """Its process would wait for it for ever, in the end."""
    started: list[multiprocessing.process.BaseProcess] = []
    ended = threading.Event()
    stranger = multiprocessing.get_context("spawn").Process(target=signal.pause, daemon=True)
    stranger.start()

    def items() -> Iterator[int]:
        worker = multiprocessing.get_context("spawn").Process(target=signal.pause, daemon=True)
        worker.start()
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGSTOP)
        started.append(worker)
        worker.join()
        ended.set()
        yield 1

    with pytest.raises(ValueError, match="no batch"):
        next(TimeoutIterator(items, 0.5))
    assert ended.wait(60)  # no second join: of two threads that wait for one process, one may find none to wait for
    assert started[0].exitcode == -signal.SIGKILL
    assert stranger.is_alive()
    stranger.kill()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.\nmore"), r"DataLoader.*Killed\."),
        (ConnectionResetError(104, "Connection reset by peer"), r"\[Errno 104\] Connection reset by peer"),
        (EOFError(), "EOFError"),
    ],
)
def test_what_a_worker_died_of_is_one_line(error: Exception, reason: str):
    def items() -> Iterator[int]:
        yield 1
        raise error

    patient = TimeoutIterator(items, 10)
    assert next(patient) == 1
    with pytest.raises(ValueError, match=rf"failed \({reason}\): run the same command again"):
        next(patient)


def test_errors_of_the_data_stay_as_they_are():
    def items() -> Iterator[int]:
        raise ValueError("cannot read x.jpg")
        yield 1

    with pytest.raises(ValueError, match=r"^cannot read x\.jpg$"):
        next(TimeoutIterator(items, 10))


def test_who_forgets_an_iterator_ends_its_thread():
    patient = TimeoutIterator(lambda: iter(range(5)), 10)
    next(patient)
    thread = patient._thread
    del patient
    thread.join(10)
    assert not thread.is_alive()


def test_a_process_ends_although_a_thread_hangs():
    """Python itself would wait for the thread."""
    done = subprocess.run([sys.executable, "-c", NEVER_ENDS], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no batch of images arrived for 0.1 s")
