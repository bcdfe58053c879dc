"""Whether a run that goes on is still the run that was begun."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from t2t_config.recipes.base import Recipe

FREE_TO_CHANGE = (
    *("data", "token_labels", "data_threads", "data_workers", "device_prefetch", "data_timeout"),
    *("max_corrupt_images", "log_every", "eval_every"),
    *("checkpoint_every", "checkpoint_every_steps", "keep_checkpoints", "keep_best"),
)
"""Fields that do not change what a run computes, so a resumed run may have others."""


def recipe_changes(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """In which fields the recipe of a checkpoint and that of the run that takes it up differ, as text; '' in none.

    Args:
        there: fields of the checkpoint's recipe, JSON values.
        here: fields of the run's.
    """
    # A field that the checkpoint does not have came later: its default is what the run did without it.
    there = {**{field.name: field.default for field in dataclasses.fields(Recipe)}, **there}
    names = [name for name in here if name not in FREE_TO_CHANGE and there.get(name) != here[name]]
    return ", ".join(f"{name} {there.get(name)!r} there, {here[name]!r} here" for name in names)
