"""A run that is asked to stop (SIGTERM, Ctrl-C, preemption) ends after its current step, saved."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils


class RunInterruptedError(Exception):
    """The run was asked to stop and is saved: the same command continues it."""


class Interruption:
    """Takes note of SIGTERM and of the first SIGINT, so that a run can end in good order; a context manager.

    A second SIGINT raises KeyboardInterrupt at once. Where several processes train together, JAX's preemption
    service listens for SIGTERM instead, and has all of them stop at the same step, whichever got the signal.
    Signals reach the main thread only: elsewhere none is noted.
    """

    def __init__(self) -> None:
        self._name: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._take_note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def requested(self, step: int) -> str | None:
        """What asks the run to stop after `step`, or None. Of several processes, each has to call it at each step."""
        if jax.process_count() > 1:
            return "preemption" if multihost_utils.reached_preemption_sync_point(step) else None
        return self._name

    def _take_note(self, number: int, frame: FrameType | None) -> None:
        self._name = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
