"""Iterator over training batches; Orbax saves and restores its position."""

from __future__ import annotations

import grain

from t2t_common.data.iterator import Batch, BatchIterator

__all__ = ["Batch", "TrainIterator"]


class TrainIterator(BatchIterator, grain.DatasetIterator):
    """`BatchIterator` as a Grain iterator, which Orbax requires."""

    def close(self) -> None:
        self.close_workers()
        super().close()
