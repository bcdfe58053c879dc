"""The order of training images, and one example by its number."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from t2t_common.data import Preprocess, TrainExamples, open_source
from t2t_common.data.examples import epoch_order
from t2t_config import RECIPES

RECIPE = dataclasses.replace(RECIPES["digits"], batch_size=100, epochs=2, cooldown_epochs=0)
HOW = Preprocess.of_recipe(RECIPE)


def test_an_order_holds_every_image_once_and_depends_on_seed_and_epoch():
    orders = {(seed, epoch): tuple(epoch_order(seed, epoch, 1437).tolist()) for seed in range(2) for epoch in range(3)}
    assert all(set(order) == set(range(1437)) for order in orders.values())
    assert len(set(orders.values())) == 6
    # No order is hidden in the numbers of images, and neighbours do not stay neighbours.
    first = np.array(orders[0, 0])
    assert abs(np.corrcoef(first, np.arange(1437))[0, 1]) < 0.1
    assert np.count_nonzero(np.abs(np.diff(first)) == 1) < 20
    assert sum(a == b for a, b in zip(orders[0, 0], orders[0, 1], strict=True)) < 10


def test_the_order_is_the_one_that_runs_were_recorded_with():
    """Another one would make a resumed run another run."""
    assert epoch_order(0, 0, 10).tolist() == [8, 0, 7, 4, 2, 9, 5, 1, 6, 3]


def test_an_example_is_the_same_whenever_it_is_asked_for():
    source = open_source("digits", "train")
    examples, again = TrainExamples(source, RECIPE, HOW), TrainExamples(source, RECIPE, HOW)
    assert len(examples) == 2 * 14 * 100
    numbers = [0, 1399, 1400, 2799, 17]
    forwards = {number: examples[number] for number in numbers}
    for number in reversed(numbers):
        for name, value in again[number].items():
            np.testing.assert_array_equal(value, forwards[number][name])
    other = TrainExamples(source, dataclasses.replace(RECIPE, seed=1), HOW)
    assert not np.array_equal(other[0]["image"], forwards[0]["image"])


@pytest.mark.parametrize("copies", [1, 2])
def test_an_epoch_shows_the_images_of_its_order(copies: int):
    source = open_source("digits", "train")
    recipe = dataclasses.replace(RECIPE, repeated_aug=copies, augment="none")
    examples = TrainExamples(source, recipe, HOW)
    for epoch in range(2):
        order = epoch_order(recipe.seed, epoch, len(source))
        for place in (0, 1, 2, 850, 1399):
            expected = source[int(order[place // copies])][1]
            assert examples[1400 * epoch + place]["label"] == expected
