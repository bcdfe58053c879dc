"""Training batches as the loop takes them: ahead on the device, unreadable images counted, position exact."""

from __future__ import annotations

import collections
import sys
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np

from t2t_common.images import UnreadableImageError
from t2t_jax.data.sources import Source

Batch = dict[str, Any]

UNREADABLE = "unreadable"
"""Entry of a batch on its way: indices of images that could not be read, (B, TRIES), filled up with -1."""

NAMED = 20
"""Names in an error message at most; all of them have been said before."""


class TrainIterator(grain.DatasetIterator):
    """Batches from any position on; `get_state` and `set_state` are what Orbax saves and restores.

    The state counts batches that were handed out, whatever lies ready on the device or in the threads, so a run that
    goes on from it sees the very next batch; and it says nothing of threads, workers or prefetch, which may change.

    Attributes:
        corrupt: names of the images that could not be read since this process began, in the order of their finding.
        say: gets a line for each of them, once.
    """

    def __init__(
        self,
        batches_from: Callable[[int], Iterator[Batch]],
        source: Source,
        *,
        max_corrupt_images: int,
        put: Callable[[Batch], Batch] | None = None,
        ahead: int = 0,
    ) -> None:
        """
        Args:
            batches_from: the batches from a position on.
            source: of the images; names those that cannot be read.
            max_corrupt_images: how many may be replaced by others.
            put: carries a batch to the device without waiting for it.
            ahead: batches that `put` is called for before they are asked for.
        """
        super().__init__()
        self._batches_from, self._source = batches_from, source
        self._limit, self._put, self._ahead = max_corrupt_images, put or (lambda batch: batch), ahead
        self.say: Callable[[str], None] = lambda text: print(text, file=sys.stderr)
        self._corrupt: dict[int, str] = {}
        self._start(0)

    def _start(self, position: int) -> None:
        self._position = position
        self._host: Iterator[Batch] | None = None
        self._ready: collections.deque[tuple[Batch, np.ndarray]] = collections.deque()

    @property
    def corrupt(self) -> list[str]:
        return list(self._corrupt.values())

    def __next__(self) -> Batch:
        """The next batch, {"image": (B, H, W, C) float32, "label": (B,) int32}.

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
        self._account(unreadable)
        self._position += 1
        return batch

    def _account(self, unreadable: np.ndarray) -> None:
        for index in unreadable[unreadable >= 0].tolist():
            if index not in self._corrupt:
                self._corrupt[index] = self._describe(index)
                self.say(f"skipped {self._corrupt[index]}")
        if len(self._corrupt) > self._limit:
            more = len(self._corrupt) - NAMED
            raise ValueError(
                f"corrupt images: {len(self._corrupt)}, --max-corrupt-images {self._limit} allows no more: "
                + "; ".join(self.corrupt[:NAMED])
                + (f"; and {more} more" if more > 0 else "")
            )

    def _describe(self, index: int) -> str:
        try:  # once more, here, as what a worker process learned of it stays there
            self._source[index]
        except UnreadableImageError as error:
            return str(error)
        return f"image {index}, which could not be read at first, but now can"

    def get_state(self) -> dict[str, Any]:
        return {"next_index": self._position}

    def set_state(self, state: dict[str, Any]) -> None:
        self.close_workers()
        self._start(int(state["next_index"]))

    def close_workers(self) -> None:
        """Ends threads and worker processes; the next batch starts them anew."""
        if isinstance(self._host, grain.DatasetIterator):
            self._host.close()

    def close(self) -> None:
        self.close_workers()
        super().close()
