"""Timeout for batches: stalled or failing input ends the run with a message."""

from __future__ import annotations

import multiprocessing
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from t2t_config.text import first_line

T = TypeVar("T")

_END = object()


class TimeoutIterator(Iterator[T], Generic[T]):
    """Iterator that waits at most `seconds` for each item of another one.

    The inner iterator is created and advanced in a separate thread, one item at a time and only on request. If it
    hangs, the thread hangs too and may keep Python from exiting: commands exit through `cli.run_and_end`.
    """

    def __init__(self, make: Callable[[], Iterator[T]], seconds: float) -> None:
        """
        Args:
            make: Function that creates the iterator; called when the first item is requested.
            seconds: Maximum time to wait for one item.
        """
        self._seconds = seconds
        self._orders: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        arguments = (make, self._orders, self._answers)  # not self, so that its `__del__` can end the thread
        self._thread = threading.Thread(target=_serve, args=arguments, name="input", daemon=True)
        self._strangers = set(multiprocessing.active_children())

    def __next__(self) -> T:
        """Return the next item.

        Raises:
            ValueError: If no item arrives in time or a worker process has died.
            Exception: Any other exception of the iterator.
        """
        if self._thread.ident is None:
            self._thread.start()
        self._orders.put(True)
        try:
            item, error = self._answers.get(timeout=self._seconds)
        except queue.Empty:
            self._give_up()
            raise ValueError(
                f"no batch of images arrived for {self._seconds:g} s: check the disk that they are on, then run the "
                "same command again"
            ) from None
        if isinstance(error, RuntimeError | EOFError | OSError):  # from Grain, PyTorch or a pipe if a worker has died
            reason = first_line(error)
            raise ValueError(
                f"reading the images failed ({reason}): run the same command again; if memory is short, lower "
                "--data-workers"
            ) from error
        if error is not None:
            raise error
        if item is _END:
            raise StopIteration
        return item

    def close(self) -> None:
        """Stop the iterator, its threads and its worker processes."""
        self._orders.put(False)
        if self._thread.ident is not None:
            self._thread.join()

    def __del__(self) -> None:
        self._orders.put(False)

    def _give_up(self) -> None:
        self._orders.put(False)
        for worker in multiprocessing.active_children():
            if worker not in self._strangers:
                worker.kill()  # a suspended process would not react to a request to exit


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
