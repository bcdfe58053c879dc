"""Training batches as the loop takes them: ahead on the device, unreadable images counted, position exact."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from t2t_common.data.corrupt import Unreadable
from t2t_common.data.examples import UNREADABLE

Batch = dict[str, Any]


class BatchIterator:
    """Batches from any position on.

    The state counts batches that were handed out, whatever lies ready on the device or in the threads, so a run that
    goes on from it sees the very next batch; and it says nothing of threads, workers or prefetch, which may change.

    Attributes:
        unreadable: account of the images that could not be read since this process began.
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
            batches_from: the batches from a position on, of `TrainExamples`.
            unreadable: gets the account of images that could not be read.
            put: carries a batch to the device without waiting for it.
            ahead: batches that `put` is called for before they are asked for.
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
        """The next batch, of what the examples hold besides `UNREADABLE`.

        Raises:
            ValueError: more images than allowed cannot be read, or a file of the data; the message names them.
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
        """The position: what `set_state` takes, of any iterator over the same examples."""
        return {"next_index": self._position}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position; what was prepared is dropped."""
        self.close_workers()
        self._start(int(state["next_index"]))

    def close_workers(self) -> None:
        """Ends threads and worker processes; the next batch starts them anew."""
        close = getattr(self._host, "close", None)
        if close is not None:
            close()
