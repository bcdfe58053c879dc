"""What a run is, in a few lines: the first that a log of a cluster, a pipe or a notebook shows of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t2t_common.data.preprocess import Preprocess
from t2t_common.workdir.writers import METRICS_FILE
from t2t_config import Recipe


def start_block(
    recipe: Recipe,
    how: Preprocess,
    weights: Mapping[str, Any],
    *,
    steps_per_epoch: int,
    first_step: int,
    devices: str,
    workdir: Path,
) -> list[str]:
    """Lines about a run that starts, or goes on after `first_step`.

    Args:
        recipe: what is run, with its data and number of classes.
        how: the model's input.
        weights: the model's arrays by name.
        steps_per_epoch: whole batches in an epoch.
        first_step: steps done before.
        devices: that it runs on, in words.
        workdir: the run's folder.
    """
    numbers = sum(math.prod(array.shape) for array in weights.values())
    height, width = how.size
    last_step = recipe.total_epochs * steps_per_epoch
    return [
        f"model     {recipe.model}, {numbers:,} weights, {recipe.num_classes} classes, {recipe.dtype}",
        f"data      {recipe.data}, {height}x{width}x{how.in_chans}, {steps_per_epoch:,} steps of {recipe.batch_size} "
        "images an epoch",
        f"run       {recipe.total_epochs} epochs, steps {first_step + 1:,} to {last_step:,}, {recipe.optimizer}, "
        f"lr {recipe.lr:g}, seed {recipe.seed}, on {devices}",
        f"workdir   {workdir}, a line here and in {METRICS_FILE} every {recipe.log_every} steps",
    ]
