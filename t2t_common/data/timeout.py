"""Batches that are waited for, but not for ever: input that hangs or breaks off ends the run, and a line says so."""

from __future__ import annotations

import multiprocessing
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from t2t_config.text import first_line

T = TypeVar("T")

_END = object()


class Patient(Iterator[T], Generic[T]):
    """The items of an iterator, each waited for no longer than `seconds`.

    The iterator is made and asked in a thread of its own, for one item at a time, and only while one is waited for. One
    that hangs goes on hanging there, and may keep Python from ending: commands end by `cli.run_and_end`.
    """

    def __init__(self, make: Callable[[], Iterator[T]], seconds: float) -> None:
        """
        Args:
            make: the iterator; called with the first item.
            seconds: to wait for one item.
        """
        self._seconds = seconds
        self._orders: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        arguments = (make, self._orders, self._answers)  # not self: who forgets an iterator ends its thread
        self._thread = threading.Thread(target=_serve, args=arguments, name="input", daemon=True)
        self._strangers = set(multiprocessing.active_children())

    def __next__(self) -> T:
        """Raises ValueError where no item comes in time or a worker process is gone; else what the iterator raises."""
        if self._thread.ident is None:
            self._thread.start()
        self._orders.put(True)
        try:
            item, error = self._answers.get(timeout=self._seconds)
        except queue.Empty:
            self._give_up()
            raise ValueError(
                f"no batch of images came for {self._seconds:g} s: check the disk that they are on, then give the same "
                "command again"
            ) from None
        if isinstance(error, RuntimeError | EOFError | OSError):  # as Grain, PyTorch and pipes tell of a dead worker
            reason = first_line(error)
            raise ValueError(
                f"reading the images broke off ({reason}): give the same command again; if memory is short, lower "
                "--data-workers"
            ) from error
        if error is not None:
            raise error
        if item is _END:
            raise StopIteration
        return item

    def close(self) -> None:
        """Ends the iterator, its threads and worker processes too."""
        self._orders.put(False)
        if self._thread.ident is not None:
            self._thread.join()

    def __del__(self) -> None:
        self._orders.put(False)

    def _give_up(self) -> None:
        self._orders.put(False)
        for worker in multiprocessing.active_children():
            if worker not in self._strangers:
                worker.kill()  # one that is stopped would never hear that it should end


def _serve(
    make: Callable[[], Iterator[Any]],
    orders: queue.SimpleQueue[bool],
    answers: queue.SimpleQueue[tuple[Any, BaseException | None]],
) -> None:
    items = None
    while orders.get():
        try:
            items = items or make()
            answers.put((next(items, _END), None))
        except BaseException as error:
            answers.put((None, error))
    close = getattr(items, "close", None)
    if close is not None:
        close()
