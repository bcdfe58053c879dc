"""Batches: their order, what decides them, where they continue, what evaluation counts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image

from t2t_common.data import Preprocess, Source, open_source, steps_per_epoch
from t2t_config import RECIPES
from t2t_jax.data import eval_batches, train_iterator
from tests.support.small_data import SMALL

HOW = Preprocess.of_recipe(SMALL)


class Numbers:
    """Ten images whose pixels say their index; label = index."""

    num_classes = 10

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.new("L", (8, 8), index), index


@pytest.fixture
def numbers() -> Source:
    return Numbers()


def test_an_epoch_shows_no_image_twice_and_the_next_is_in_another_order(numbers: Source):
    batches = list(train_iterator(numbers, SMALL, HOW))
    assert len(batches) == 4 * steps_per_epoch(numbers, 4) == 8
    assert {(b["image"].shape, b["image"].dtype, b["label"].dtype) for b in batches} == {
        ((4, 8, 8, 1), np.dtype(np.float32), np.dtype(np.int32))
    }
    orders = [tuple(np.concatenate([b["label"] for b in batches[e : e + 2]])) for e in range(0, 8, 2)]
    assert all(len(set(order)) == 8 for order in orders)
    assert len(set(orders)) == 4
    assert set(sum(orders, ())) == set(range(10))  # what one epoch drops, another shows


def test_repeated_augmentation_shows_fewer_images_more_often(numbers: Source):
    """Two epochs of 8 in batches of 4: each of 8 / 2 images twice in a row, every time anew."""
    recipe = dataclasses.replace(SMALL, repeated_aug=2)
    labels = [b["label"] for b in train_iterator(numbers, recipe, HOW)]
    orders = [np.concatenate(labels[e : e + 2]) for e in range(0, 8, 2)]
    assert len(labels) == 8
    for order in orders:
        np.testing.assert_array_equal(order[::2], order[1::2])
        assert len(set(order)) == 4
    assert len({tuple(order) for order in orders}) == 4
    source = open_source("digits", "train")
    recipe = dataclasses.replace(RECIPES["digits"], repeated_aug=3, batch_size=300)
    batch = next(train_iterator(source, recipe, Preprocess.of_recipe(recipe)))
    assert len(set(map(bytes, batch["image"]))) == 300
    np.testing.assert_array_equal(batch["label"][::3], batch["label"][2::3])


def test_batches_depend_on_the_seed_and_on_nothing_else():
    source = open_source("digits", "train")

    def pixels(**changes: object) -> list[np.ndarray]:
        recipe = dataclasses.replace(RECIPES["digits"], **changes)
        iterator = train_iterator(source, recipe, Preprocess.of_recipe(recipe))
        return [next(iterator)["image"] for _ in range(3)]

    first = pixels()
    for again in (pixels(data_threads=0), pixels(data_threads=3)):
        np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, pixels(seed=1))


def test_an_image_is_augmented_anew_in_every_epoch():
    source = open_source("digits", "train")
    recipe = dataclasses.replace(RECIPES["digits"], batch_size=1437, epochs=2)
    iterator = train_iterator(source, recipe, Preprocess.of_recipe(recipe))
    seen = [next(iterator)["image"] for _ in range(2)]
    assert len({image.tobytes() for batch in seen for image in batch}) == 2 * 1437


def test_the_iterator_continues_where_it_was(numbers: Source):
    whole = [b["label"] for b in train_iterator(numbers, SMALL, HOW)]
    first = train_iterator(numbers, SMALL, HOW)
    for _ in range(3):
        next(first)
    second = train_iterator(numbers, SMALL, HOW)
    second.set_state(first.get_state())
    np.testing.assert_array_equal(whole[3:], [b["label"] for b in second])


def test_evaluation_shows_every_image_once_and_marks_the_filling(numbers: Source):
    batches = list(eval_batches(numbers, HOW, 4))
    assert [b["image"].shape for b in batches] == [(4, 8, 8, 1)] * 3
    assert [b["mask"].sum() for b in batches] == [4, 4, 2]
    labels = np.concatenate([b["label"][b["mask"]] for b in batches])
    np.testing.assert_array_equal(labels, np.arange(10))
    shown = np.concatenate([b["image"][b["mask"]] for b in batches])[:, 0, 0, 0]
    np.testing.assert_allclose(255 * shown, np.arange(10), atol=1e-4)


def test_a_batch_larger_than_the_data_is_refused(numbers: Source):
    with pytest.raises(ValueError, match="batch_size 11 exceeds the 10 training images"):
        steps_per_epoch(numbers, 11)
