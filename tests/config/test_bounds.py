"""The table of bounds: models and recipes accept and refuse the same values, with the same message."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any

import pytest

import t2t_jax
import t2t_torch
from t2t_config import Recipe, model_arguments
from t2t_config.bounds import BOUNDS, check_bounds
from t2t_torch.models.registry import ARCHITECTURES

BOTH = ("img_size", "in_chans", "num_classes", "drop_rate", "attn_drop_rate", "drop_path_rate", "aux_head")
NAME = "t2t_vit_micro"


def _complaint(make: Any, **arguments: Any) -> str | None:
    try:
        make(**arguments)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("value", [-1, -0.1, 1, 1.0, 1.01, float("nan"), float("inf"), "1", True, 2**31])
def test_models_and_recipes_agree(name: str, value: Any):
    arguments: dict[str, Any] = {"img_size": None, "num_classes": None}
    overrides = {} if name in arguments else {name: value}
    arguments.update({name: value} if name in arguments else {})
    augment = {"augment": "crop"} if name == "aux_head" else {}
    of_model = _complaint(model_arguments, name=NAME, overrides=overrides, **arguments)
    assert _complaint(Recipe, model=NAME, **augment, **{name: value}) == of_model


@pytest.mark.parametrize("package", [t2t_torch, t2t_jax])
def test_the_last_block_may_always_be_dropped_in_both(package: Any):
    assert Recipe(NAME, drop_path_rate=1.0).drop_path_rate == 1.0
    package.create_model(NAME, drop_path_rate=1.0)
    for make in (package.create_model, Recipe):
        with pytest.raises(ValueError, match=r"^drop_path_rate 1\.5 is not a probability: give a number from 0 to 1$"):
            make(NAME, drop_path_rate=1.5)


def test_every_number_of_a_recipe_has_bounds_and_every_bound_a_user():
    kinds = {field.name: str(field.type) for field in dataclasses.fields(Recipe)}
    numbers = {name for name, kind in kinds.items() if "Literal" not in kind and re.search("int|float|bool", kind)}
    assert numbers <= BOUNDS.keys()
    arguments = {name for arch in ARCHITECTURES.values() for name in inspect.signature(arch).parameters}
    assert BOUNDS.keys() <= arguments | kinds.keys()


def test_unknown_names_are_not_checked():
    check_bounds({"tokens_type": object()})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"img_size": (32, 48)}, "img_size must be one number: training images are square, got (32, 48)"),
        ({"num_classes": 0}, "num_classes must be positive: training needs a classifier, got 0"),
        ({"batch_size": 8.0}, "batch_size 8.0 is not a whole number from 1"),
        ({"crop_pct": 1.5}, "crop_pct 1.5 is not a share: give a number above 0, up to 1"),
        ({"keep_best": "no"}, "keep_best 'no' is not True or False"),
        ({"lr": "1e-3"}, "lr '1e-3' is not a number from 0 that is finite in float32"),
        ({"ema_decay": 1.0}, "ema_decay 1.0 is not a number above 0 and below 1"),
        ({"ratio": (2.0, 1.0)}, "ratio (2.0, 1.0) is not two positive numbers, the smaller first"),
    ],
)
def test_a_mistake_in_a_recipe_is_one_line_with_the_remedy(changes: dict[str, Any], message: str):
    assert _complaint(Recipe, model=NAME, **changes) == message
