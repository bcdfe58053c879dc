"""Iterator over training batches: prefetches to the device, counts unreadable images and tracks the exact position."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from t2t_common.data.corrupt import Unreadable
from t2t_common.data.examples import UNREADABLE

Batch = dict[str, Any]


class BatchIterator:
    """Iterator over batches, starting at any position.

    The state counts the batches that were returned, not those prefetched on the device or in threads, so a run resumed
    from it gets exactly the next batch. It is independent of threads, workers and prefetching, which may change.

    Attributes:
        unreadable: Record of the images that could not be read since this process started.
    """

    def __init__(
        self,
        batches_from: Callable[[int], Iterator[Batch]],
        unreadable: Unreadable,
        *,
        put: Callable[[Batch], Batch] | None = None,
        ahead: int = 0,
    ) -> None:
        """
        Args:
            batches_from: Function that returns the batches of `TrainExamples` from a position on.
            unreadable: Record of the images that could not be read.
            put: Function that transfers a batch to the device without waiting for it.
            ahead: Number of batches to prefetch with `put`.
        """
        super().__init__()
        self._batches_from, self.unreadable = batches_from, unreadable
        self._put, self._ahead = put or (lambda batch: batch), ahead
        self._start(0)

    def _start(self, position: int) -> None:
        self._position = position
        self._host: Iterator[Batch] | None = None
        self._ready: collections.deque[tuple[Batch, np.ndarray]] = collections.deque()

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Batch:
        """Return the next batch, with all entries of the examples except `UNREADABLE`.

        Raises:
            ValueError: If more images than allowed, or a file of the data, cannot be read; the message names them.
        """
        if self._host is None:
            self._host = self._batches_from(self._position)
        while len(self._ready) <= self._ahead:
            batch = next(self._host, None)
            if batch is None:
                break
            unreadable = batch.pop(UNREADABLE)
            self._ready.append((self._put(batch), unreadable))
        if not self._ready:
            raise StopIteration
        batch, unreadable = self._ready.popleft()
        self.unreadable.account(unreadable)
        self._position += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """Return the position, in the form that `set_state` of any iterator over the same examples accepts."""
        return {"next_index": self._position}

    def set_state(self, state: dict[str, Any]) -> None:
        """Move to a position and discard prefetched batches."""
        self.close_workers()
        self._start(int(state["next_index"]))

    def close_workers(self) -> None:
        """Stop threads and worker processes; the next batch starts them again."""
        close = getattr(self._host, "close", None)
        if close is not None:
            close()
