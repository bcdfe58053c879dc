"""Summary of a run, printed at the top of its log if the output is not a terminal (cluster, pipe, notebook)."""

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
    preprocess: Preprocess,
    weights: Mapping[str, Any],
    *,
    steps_per_epoch: int,
    first_step: int,
    devices: str,
    workdir: Path,
) -> list[str]:
    """Return the summary lines of a run that starts, or resumes after `first_step`.

    Args:
        recipe: Recipe of the run, with its data and number of classes set.
        preprocess: Preprocessing, which defines the model's input.
        weights: Arrays of the model by name.
        steps_per_epoch: Full batches per epoch.
        first_step: Steps already completed.
        devices: Description of the devices.
        workdir: Folder of the run.
    """
    numbers = sum(math.prod(array.shape) for array in weights.values())
    height, width = preprocess.size
    last_step = recipe.total_epochs * steps_per_epoch
    return [
        f"model     {recipe.model}, {numbers:,} weights, {recipe.num_classes} classes, {recipe.dtype}",
        f"data      {recipe.data}, {height}x{width}x{preprocess.in_chans}, "
        f"{steps_per_epoch:,} steps of {recipe.batch_size} images an epoch",
        f"run       {recipe.total_epochs} epochs, steps {first_step + 1:,} to {last_step:,}, {recipe.optimizer}, "
        f"lr {recipe.lr:g}, seed {recipe.seed}, on {devices}",
        f"workdir   {workdir}, a line here and in {METRICS_FILE} every {recipe.log_every} steps",
    ]
