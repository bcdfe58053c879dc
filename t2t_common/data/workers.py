"""Processes that prepare batches: what stops the run does not stop them before it, and none of them outlives it."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def leave_signals_to_the_run() -> None:
    """To be called by the thread that is about to start workers: SIGTERM and SIGINT, which schedulers and terminals
    send to all processes of a run, go by the thread and all threads and processes that it starts.

    The run ends itself, after a step that may still need a batch. Workers end by `end_with_the_run`, or by SIGKILL.
    """
    if hasattr(signal, "pthread_sigmask"):
        resource_tracker.ensure_running()  # starting it would undo what follows
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})


def end_with_the_run() -> None:
    """To be called in a worker: as soon as the process that asked for it is gone, however it ended, the worker ends."""
    wake_with_parent()
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent,), name="end with the run", daemon=True).start()


def wake_with_parent() -> None:
    """Has Linux continue this process, should it be stopped, when its parent ends: or it could not end in its turn."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            # Not SIGKILL: to Linux, the parent is the thread that started this process, and that one may end earlier.
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGCONT, 0, 0, 0)


def _end_after(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
