"""The recipe for own images, and how it fits their number."""

from __future__ import annotations

import dataclasses

import pytest

from t2t_config import RECIPES, FromData, fit_to_data

OWN = RECIPES["own"]


@pytest.mark.parametrize("from_weights", [False, True])
@pytest.mark.parametrize("images", [1, 8, 40, 267, 5_000, 1_000_000])
def test_values_fit_the_number_of_images(images: int, from_weights: bool) -> None:
    recipe, note = fit_to_data(OWN, images, from_weights=from_weights)
    steps_per_epoch = max(1, images // recipe.batch_size)
    steps = recipe.epochs * steps_per_epoch
    assert recipe.batch_size == 8 or steps_per_epoch >= 8
    least, most = (10, 100) if from_weights else (20, 200)
    target = 1000 if from_weights else 2000
    assert least <= recipe.epochs <= most
    assert recipe.epochs in (least, most) or target <= steps < target + steps_per_epoch
    assert 1 <= recipe.warmup_epochs <= recipe.epochs // 10
    assert recipe.ema_decay is not None
    assert recipe.ema_decay**steps < 0.01 or steps <= 20  # of the initial weights in the average
    assert recipe.layer_decay == (0.75 if from_weights else 1.0)
    assert note is not None
    assert f"--batch-size {recipe.batch_size}, --epochs {recipe.epochs}" in note
    left = {field.name for field in dataclasses.fields(recipe) if isinstance(getattr(recipe, field.name), FromData)}
    assert left == {"val_fraction"}  # chosen before the images are counted


def test_values_that_are_set_are_kept() -> None:
    mine = dataclasses.replace(OWN, epochs=40, batch_size=10, ema_decay=None)
    recipe, note = fit_to_data(mine, 400)
    assert (recipe.epochs, recipe.batch_size, recipe.ema_decay, recipe.warmup_epochs) == (40, 10, None, 2)
    assert note is not None
    assert "--epochs" not in note


def test_other_recipes_stay_as_they_are() -> None:
    assert fit_to_data(RECIPES["digits"], 10, from_weights=True) == (RECIPES["digits"], None)
