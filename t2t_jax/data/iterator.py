"""Training batches whose position Orbax saves and restores."""

from __future__ import annotations

import grain

from t2t_common.data.iterator import Batch, BatchIterator

__all__ = ["Batch", "TrainIterator"]


class TrainIterator(BatchIterator, grain.DatasetIterator):
    """`BatchIterator` as an iterator of Grain, which is what Orbax asks for."""

    def close(self) -> None:
        self.close_workers()
        super().close()
