"""The first lines of a run's log."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from t2t_common.data.preprocess import Preprocess
from t2t_common.run.banner import start_block
from t2t_config import Recipe


def test_what_a_run_is():
    recipe = Recipe(
        "t2t_vit_micro", data="photos", img_size=16, num_classes=4, epochs=3, cooldown_epochs=1, batch_size=8
    )
    weights = {"a": np.zeros((3, 5)), "b": np.zeros(())}
    how = Preprocess.of_recipe(recipe)
    facts = {"steps_per_epoch": 1000, "first_step": 20, "devices": "2 × cpu", "workdir": Path("runs/it")}
    assert start_block(recipe, how, weights, **facts) == [
        "model     t2t_vit_micro, 16 weights, 4 classes, float32",
        "data      photos, 16x16x3, 1,000 steps of 8 images an epoch",
        "run       4 epochs, steps 21 to 4,000, adamw, lr 0.0005, seed 0, on 2 × cpu",
        "workdir   runs/it, a line here and in metrics.jsonl every 50 steps",
    ]
