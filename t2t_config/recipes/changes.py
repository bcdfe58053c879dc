"""Comparison of the recipes of a checkpoint and of the run that resumes it."""

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
"""Fields that do not affect the results of a run, so a resumed run may change them."""


def recipe_changes(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Describe the fields in which the recipes of a checkpoint and of the resumed run differ; '' if there are none.

    Args:
        there: Fields of the checkpoint's recipe, as JSON values.
        here: Fields of the run's recipe.
    """
    # A field missing in the checkpoint was added later: the run behaved as with its default.
    there = {**{field.name: field.default for field in dataclasses.fields(Recipe)}, **there}
    names = [name for name in here if name not in FREE_TO_CHANGE and there.get(name) != here[name]]
    return ", ".join(f"{name} {there.get(name)!r} -> {here[name]!r}" for name in names)
