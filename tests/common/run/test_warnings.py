"""What is likely to be wrong is told, what is right is not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from t2t_common.evaluation.evaluate_command import new_confusion
from t2t_common.run.warnings import evaluation_warnings, head_note, schedule_warnings
from t2t_config import RECIPES, ExpectedClasses, Recipe, epoch_lr, fit_to_data

RECIPE = Recipe("t2t_vit_micro", epochs=20, cooldown_epochs=0, warmup_epochs=2, ema_decay=0.9)

STEPS = {
    "digits": 44,
    "fashion_mnist": 937,
    "imagenet": 2502,
    "finetune": 2502,
    "cifar10": 781,
    "cifar100": 781,
    "own": 62,
}
"""Steps in an epoch of the data that the recipes are for."""


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_on_their_own_data_are_sound(name: str):
    steps = STEPS[name if name in STEPS else name.split("_")[0]]
    assert not any(schedule_warnings(RECIPES[name], steps).values())


@pytest.mark.parametrize("images", [20, 100, 1000, 10_000])
def test_own_images_of_any_number_are_trained_without_a_warning(images: int):
    recipe, _ = fit_to_data(RECIPES["own"], images)
    assert not any(schedule_warnings(recipe, images // recipe.batch_size).values())


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"epochs": 2, "warmup_epochs": 10}, "10 epochs leaves nothing of the run of 2 epochs"),
        ({"epochs": 10, "warmup_epochs": 10}, "leaves nothing of the run of 10 epochs"),
        ({"epochs": 3, "warmup_epochs": 5, "cooldown_epochs": 10}, "5 epochs leaves nothing of --epochs 3"),
        ({"epochs": 1, "warmup_epochs": 1}, "1 epochs leaves nothing of the run of 1 epochs"),
    ],
)
def test_a_warm_up_that_takes_the_run_is_told(changes: dict[str, int], text: str):
    recipe = dataclasses.replace(RECIPE, **changes)
    told = schedule_warnings(recipe, 100)["warm-up"]
    assert told is not None
    assert text in told
    peak = max(epoch_lr(recipe, epoch) for epoch in range(recipe.total_epochs))
    assert f"reaches at most {peak:.2e}, not 5.00e-04" in told


@pytest.mark.parametrize(
    ("decay", "steps", "kept"), [(0.99996, 40, "99.84"), (0.99, 4, "96.06"), (0.9999, 1000, "90.48")]
)
def test_an_average_that_cannot_move_is_told_and_the_remedy_works(decay: float, steps: int, kept: str):
    recipe = dataclasses.replace(RECIPE, ema_decay=decay, epochs=2, warmup_epochs=0)
    told = schedule_warnings(recipe, steps // 2)["average"]
    assert told is not None
    assert f"still contains {kept} % of the initial ones after all {steps} steps" in told
    better = dataclasses.replace(recipe, ema_decay=float(told.split("such as to ")[1].split(",")[0]))
    assert schedule_warnings(better, steps // 2)["average"] is None
    assert schedule_warnings(dataclasses.replace(recipe, ema_decay=None), steps // 2)["average"] is None


def test_a_head_that_is_not_as_the_recipe_or_the_data_is_told():
    assert head_note(None, 3, 3) is None
    assert head_note(ExpectedClasses(3), 3, 3) is None
    assert (
        head_note(ExpectedClasses(1000), 3, 3) == "the head has 3 classes, as the data; the recipe is for data of 1000"
    )
    assert head_note(1000, 1000, 3) == "the head has 1000 classes, the data 3, as --num-classes says"


def told(confusion: np.ndarray, *, epoch: int = 19, in_data: int = 4) -> dict[str, str | None]:
    """Of data with the classes 0 ... in_data - 1."""
    names = ["wren", "robin", "sparrow", "thrush"]
    return dict(evaluation_warnings(confusion, RECIPE, epoch, in_data=range(in_data), names=names))


def test_guesses_of_classes_that_the_data_do_not_have_are_told():
    confusion = new_confusion(10)
    confusion[:4, :4] = 20 * np.eye(4, dtype=int)
    assert told(confusion) == {"strangers": None, "chance": None, "never": None}
    confusion[1, [3, 7, 8]] = 1, 5, 6
    strangers = told(confusion)["strangers"]
    assert strangers is not None
    assert "11 of 92 validation images are predicted as" in strangers
    assert "(class 8, class 7): the head has 10 classes, the data 4" in strangers
    assert "(thrush, class 8, class 7)" in str(told(confusion, in_data=3)["strangers"])


def test_a_run_that_stays_at_chance_is_told():
    """Always one class, random guesses, and a majority; not a run that learns, and not one that only begins."""
    always, draws = new_confusion(4), np.random.default_rng(0)
    always[:, 2] = 25
    guessing = np.stack([draws.multinomial(25, [0.25] * 4) for _ in range(4)])
    for confusion in (always, guessing):
        chance = told(confusion)["chance"]
        assert chance is not None
        assert "is no better than chance: always wren would have 25.00 %" in chance
        assert told(confusion, epoch=1)["chance"] is None
        assert told(confusion, epoch=2)["chance"] is not None  # after the warm-up
    majority = np.diag([90, 0, 0, 0]) + np.eye(4, dtype=int)[0] * np.array([[0], [4], [3], [3]])
    assert "always wren would have 90.00 %" in str(told(majority)["chance"])
    learning = always + 15 * np.eye(4, dtype=int)
    assert told(learning)["chance"] is None


def test_a_class_that_is_never_guessed_is_told():
    """After a third of the run, if it has ten images, and the rest is better than chance."""
    confusion = 25 * np.eye(4, dtype=int)
    confusion[3] = 10, 0, 0, 0
    never = told(confusion)["never"]
    assert never is not None
    assert "taken for 1 of the classes (thrush), though 10 show them" in never
    assert told(confusion, epoch=6)["never"] == never
    assert told(confusion, epoch=5)["never"] is None  # of 20 epochs
    confusion[3, 0] = 9
    assert told(confusion)["never"] is None
    confusion[3] = 9, 0, 0, 1
    assert told(confusion)["never"] is None
    always = new_confusion(4)
    always[:, 2] = 25
    assert told(always)["chance"] is not None
    assert told(always)["never"] is None  # one warning is enough


@pytest.mark.parametrize("counts", [[[5, 0], [0, 0]], [[1, 0], [0, 1]], [[0, 1], [1, 0]]])
def test_too_few_images_tell_nothing_of_chance(counts: list[list[int]]):
    assert told(np.array(counts))["chance"] is None
