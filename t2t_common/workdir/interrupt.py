"""Graceful interruption: on SIGTERM or Ctrl-C, a run finishes its current step, saves and ends."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class RunInterruptedError(Exception):
    """Raised when an interrupted run has been saved; the same command resumes it."""


class Interruption:
    """Context manager that records SIGTERM and the first SIGINT, so that a run can stop gracefully.

    A second SIGINT raises KeyboardInterrupt immediately. Signals are delivered to the main thread only, so in other
    threads none is recorded.
    """

    def __init__(self) -> None:
        self._name: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        if self.listens and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._take_note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def listens(self) -> bool:
        """Whether signals are recorded."""
        return True

    def requested(self, step: int) -> str | None:
        """Return the signal that asks the run to stop after `step`, or None. Every process must call it each step."""
        return self._name

    def _take_note(self, number: int, frame: FrameType | None) -> None:
        self._name = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
