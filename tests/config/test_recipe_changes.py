"""Whether a run that goes on is still the run that was begun."""

from __future__ import annotations

import dataclasses

from t2t_config import RECIPES, recipe_changes


def test_differences_are_named_but_not_those_that_change_no_number():
    here = dataclasses.asdict(RECIPES["digits"])
    assert recipe_changes(here, here) == ""
    there = {**here, "lr": 1.0, "data_workers": 7, "keep_best": False, "log_every": 3, "data": "elsewhere"}
    assert recipe_changes(there, here) == "lr 1.0 -> 0.0007"
    assert recipe_changes({**here, "mixup": 0.5, "seed": 3}, here) == "mixup 0.5 -> 0.0, seed 3 -> 0"


def test_a_field_that_came_later_was_at_its_default():
    here = dataclasses.asdict(RECIPES["digits"])
    there = {name: value for name, value in here.items() if name != "remat"}
    assert recipe_changes(there, here) == ""
    assert recipe_changes(there, {**here, "remat": True}) == "remat False -> True"
