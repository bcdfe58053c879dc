"""Signals and lifetime of worker processes: they ignore the signals that stop the run, and never outlive it."""

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
    """Block SIGTERM and SIGINT in the calling thread and in all threads and processes that it starts.

    To be called by the thread that is about to start workers, as schedulers and terminals send these signals to all
    processes of a run. The run itself stops after a step that may still need a batch. Workers end by
    `end_with_the_run`, or by SIGKILL.
    """
    if hasattr(signal, "pthread_sigmask"):
        resource_tracker.ensure_running()  # starting it later would undo the mask
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})


def end_with_the_run() -> None:
    """End this worker as soon as its parent process has exited for any reason; to be called in the worker."""
    wake_with_parent()
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent,), name="end with the run", daemon=True).start()


def wake_with_parent() -> None:
    """Let Linux continue this process, if suspended, when its parent exits; otherwise it could not exit itself."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            # Not SIGKILL: for Linux, the parent is the thread that started this process, and that thread may exit
            # earlier.
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGCONT, 0, 0, 0)


def _end_after(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
