"""A run that is asked to stop (SIGTERM, Ctrl-C) ends after its current step, saved."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class RunInterruptedError(Exception):
    """The run was asked to stop and is saved: the same command continues it."""


class Interruption:
    """Takes note of SIGTERM and of the first SIGINT, so that a run can end in good order; a context manager.

    A second SIGINT raises KeyboardInterrupt at once. Signals reach the main thread only: elsewhere none is noted.
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
        """Whether signals are taken note of."""
        return True

    def requested(self, step: int) -> str | None:
        """What asks the run to stop after `step`, or None. Of several processes, each has to call it at each step."""
        return self._name

    def _take_note(self, number: int, frame: FrameType | None) -> None:
        self._name = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
