"""Recipe for own images, with values that are chosen when their number is known."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from t2t_config.recipes.base import FloatFromData, FromData, IntFromData, Recipe

BATCH_SIZES = (8, 16, 32, 64)
"""Batch sizes to choose from."""
STEPS_PER_EPOCH = 8
"""Minimum number of steps per epoch, which bounds the batch size."""
STEPS = {True: 1000, False: 2000}
"""Approximate number of steps of a run: from given weights; from random ones."""
EPOCHS = {True: (10, 100), False: (20, 200)}
"""Bounds of the number of epochs, likewise."""
AVERAGED = 0.05
"""Time constant of the moving average of the weights, as a fraction of all steps."""
LARGEST_DECAY = 0.9999
"""Maximum decay of the moving average."""
LAYER_DECAY = 0.75
"""Layer-wise decay of a run from given weights."""


def own() -> Recipe:
    """{command} --data /path/to/images [--init-from WEIGHTS]

    For own images in class folders: /path/to/images/CLASS/*.jpg, or train/CLASS and val/CLASS below it. If there are no
    validation images, every fifth is held out, chosen by its name. The head has the classes of the data.

    {expect}
    Batch size, epochs, warm-up, moving average and layer-wise decay fit the number of training images and whether the
    run starts from weights; the log begins with them, and any of them can be set. --model and --img-size select the
    model; small images train fastest with --model t2t_vit_tiny --img-size 64.
    """
    return Recipe(
        model="t2t_vit_14",
        val_fraction=FloatFromData(0.2),
        epochs=IntFromData(100),
        cooldown_epochs=0,
        batch_size=IntFromData(32),
        warmup_epochs=IntFromData(5),
        ema_decay=FloatFromData(0.99),
        layer_decay=FloatFromData(1.0),
        scale=(0.4, 1.0),
        checkpoint_every=IntFromData(5),
        eval_every=IntFromData(5),
        log_every=10,
    )


def fit_to_data(recipe: Recipe, images: int, *, from_weights: bool = False) -> tuple[Recipe, str | None]:
    """Replace the values of `recipe` that are marked with `FromData`, except `val_fraction`.

    Args:
        recipe: Recipe, such as "own".
        images: Number of training images.
        from_weights: Whether the run starts from given weights.

    Returns:
        The recipe, and a note that lists the values; None if no value is marked.
    """
    batch_size: int = recipe.batch_size
    if isinstance(batch_size, FromData):
        batch_size = max((size for size in BATCH_SIZES if images // size >= STEPS_PER_EPOCH), default=BATCH_SIZES[0])
    steps_per_epoch = max(1, images // batch_size)
    epochs: int = recipe.epochs
    if isinstance(epochs, FromData):
        least, most = EPOCHS[from_weights]
        epochs = min(max(math.ceil(STEPS[from_weights] / steps_per_epoch), least), most)
    averaged_steps = AVERAGED * epochs * steps_per_epoch
    values: dict[str, Any] = {
        "batch_size": batch_size,
        "epochs": epochs,
        "warmup_epochs": max(1, epochs // 20),
        "ema_decay": round(min(1 - 1 / max(averaged_steps, 2.0), LARGEST_DECAY), 4),
        "layer_decay": LAYER_DECAY if from_weights else 1.0,
        "checkpoint_every": max(1, epochs // 20),
        "eval_every": max(1, epochs // 20),
    }
    chosen = {name: value for name, value in values.items() if isinstance(getattr(recipe, name), FromData)}
    if not chosen:
        return recipe, None
    listed = ", ".join(f"--{name.replace('_', '-')} {value}" for name, value in chosen.items())
    start = "from the given weights" if from_weights else "from random weights"
    return dataclasses.replace(recipe, **chosen), f"chosen for {images} training images, {start}: {listed}"
