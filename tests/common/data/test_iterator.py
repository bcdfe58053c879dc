"""Where the batches of a run continue."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from t2t_common.data.corrupt import Unreadable
from t2t_common.data.examples import UNREADABLE
from t2t_common.data.iterator import Batch, BatchIterator
from tests.common.data.test_corrupt import Damaged


def numbers(position: int) -> Iterator[Batch]:
    return ({"number": n, UNREADABLE: np.full((1, 1), -1)} for n in range(position, 6))


@pytest.mark.parametrize("ahead", [0, 2, 9])
def test_the_position_is_that_of_the_last_batch_taken(ahead: int):
    put: list[int] = []

    def note(batch: Batch) -> Batch:
        put.append(batch["number"])
        return batch

    iterator = BatchIterator(numbers, Unreadable(Damaged(), 0), put=note, ahead=ahead)
    assert not put
    assert [next(iterator)["number"] for _ in range(2)] == [0, 1]
    assert put == list(range(min(6, 2 + ahead)))
    other = BatchIterator(numbers, Unreadable(Damaged(), 0))
    other.set_state(iterator.get_state())
    assert [batch["number"] for batch in other] == [2, 3, 4, 5]
    assert [batch["number"] for batch in iterator] == [2, 3, 4, 5]
    assert other.get_state() == iterator.get_state() == {"next_index": 6}


def test_batches_are_of_what_the_model_needs():
    assert next(BatchIterator(numbers, Unreadable(Damaged(), 0))).keys() == {"number"}


def test_an_image_counts_when_its_batch_is_taken():
    """Not when it was prepared ahead."""

    def damaged(position: int) -> Iterator[Batch]:
        return ({UNREADABLE: np.array([[n if n == 2 else -1]])} for n in range(position, 6))

    iterator = BatchIterator(damaged, Unreadable(Damaged(), 0), ahead=4)
    next(iterator), next(iterator)
    with pytest.raises(ValueError, match="corrupt images: 1"):
        next(iterator)
