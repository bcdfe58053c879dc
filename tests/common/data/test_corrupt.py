"""The account of images that cannot be read."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from t2t_common.data.corrupt import NAMED, Unreadable
from t2t_common.data.images import UnreadableImageError


class Damaged:
    """A hundred images; the even ones cannot be read."""

    num_classes, class_names = 1, None

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if index % 2 == 0:
            raise UnreadableImageError(f"unreadable image {index}")
        return Image.new("L", (1, 1)), 0


def test_each_is_said_once_and_counted_once():
    said: list[str] = []
    unreadable = Unreadable(Damaged(), 2)
    unreadable.say = said.append
    unreadable.account(np.array([[-1, -1], [4, -1]]))
    unreadable.account(np.array([[4, 8], [-1, -1]]))
    assert unreadable.names == ["unreadable image 4", "unreadable image 8"]
    assert said == [f"skipped {name}" for name in unreadable.names]
    with pytest.raises(ValueError, match="corrupt images: 3, --max-corrupt-images 2 allows no more: unr"):
        unreadable.account(np.array([[10]]))


def test_one_that_can_be_read_by_now_is_named_by_its_number():
    unreadable = Unreadable(Damaged(), 1)
    unreadable.account(np.array([[5]]))
    assert unreadable.names == ["image 5, which could not be read at first, but now can"]


def test_of_many_the_first_are_named():
    with pytest.raises(ValueError, match=f"corrupt images: 50, .*; and {50 - NAMED} more") as error:
        Unreadable(Damaged(), 0).account(np.arange(0, 100, 2))
    assert str(error.value).count("unreadable image") == NAMED
