"""Warnings about likely mistakes that do not stop a run, shown in the terminal and on the report page.

Each warning has a key: a later warning with the same key replaces it, and None clears it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from t2t_config import ExpectedClasses, Recipe, epoch_lr
from t2t_config.text import few, readable

Warnings = Mapping[str, str | None]

MOST_KEPT = 0.25
"""Maximum weight of the initial parameters in the EMA at the end of a run, without a warning."""
WELL_KEPT = 0.01
"""Weight of the initial parameters in the EMA with the suggested decay."""
FEWEST_OF_A_CLASS = 10
"""Number of validation images of a class from which it is remarkable that none is taken for it."""


# --- Before the first step ----------------------------------------------------------------------------------


def schedule_warnings(recipe: Recipe, steps_per_epoch: int) -> Warnings:
    """Return warnings for a run that is too short for its warmup or EMA decay."""
    return {"warm-up": _warm_up(recipe), "average": _average(recipe, recipe.total_epochs * steps_per_epoch)}


def _warm_up(recipe: Recipe) -> str | None:
    if recipe.warmup_epochs < recipe.epochs:
        return None
    peak = max(epoch_lr(recipe, epoch) for epoch in range(recipe.total_epochs))
    longer = recipe.warmup_epochs >= recipe.total_epochs
    what = f"the run of {recipe.total_epochs} epochs" if longer else f"--epochs {recipe.epochs}"
    return (
        f"a warm-up of {recipe.warmup_epochs} epochs leaves nothing of {what}: the learning rate reaches at most "
        f"{peak:.2e}, not {recipe.lr:.2e}: lower --warmup-epochs, or raise --epochs"
    )


def _average(recipe: Recipe, steps: int) -> str | None:
    if recipe.ema_decay is None or (kept := recipe.ema_decay**steps) <= MOST_KEPT:
        return None
    rest = -math.expm1(math.log(WELL_KEPT) / steps)
    return (
        f"the moving average of the weights, which is evaluated, still contains {100 * kept:.4g} % of the initial ones "
        f"after all {steps} steps: lower --ema-decay, such as to {1 - float(f'{rest:.1g}'):g}, or set --ema-decay None"
    )


def head_note(expected: int | None, num_classes: int, in_data: int) -> str | None:
    """Return a note if the head's number of classes differs from the recipe's or exceeds the data's, else None.

    Args:
        expected: `num_classes` of the recipe before the data were opened.
        num_classes: Number of classes of the head.
        in_data: Number of classes in the data.
    """
    if isinstance(expected, ExpectedClasses) and expected != num_classes:
        return f"the head has {num_classes} classes, as the data; the recipe is for data of {int(expected)}"
    if num_classes > in_data:
        return f"the head has {num_classes} classes, the data {in_data}, as --num-classes says"
    return None


# --- After an evaluation ------------------------------------------------------------------------------------


def evaluation_warnings(
    confusion_NxN: np.ndarray,
    recipe: Recipe,
    epoch: int,
    *,
    in_data: Collection[int],
    names: Sequence[str] | None = None,
) -> Warnings:
    """Return warnings for predictions of classes absent from the data, for accuracy at chance level, and else for
    classes that are never predicted.

    Args:
        confusion_NxN: Confusion matrix of the validation images: true class (row), predicted class (column).
        recipe: Recipe of the run.
        epoch: Epoch after which the run was evaluated, from 0.
        in_data: Classes that have images in the data.
        names: Names of the classes.
    """
    due = epoch + 1 >= max(2, recipe.warmup_epochs + 1, math.ceil(recipe.total_epochs / 10))
    is_due = due or epoch + 1 == recipe.total_epochs
    chance = _chance(confusion_NxN, names) if is_due else None
    is_late = is_due and 3 * (epoch + 1) >= recipe.total_epochs
    return {
        "strangers": _absent_classes(confusion_NxN, in_data, names),
        "chance": chance,
        "never": _never(confusion_NxN, names) if is_late and chance is None else None,
    }


def _name(index: int, names: Sequence[str] | None) -> str:
    return readable(names[index]) if names is not None and index < len(names) else f"class {index}"


def _absent_classes(confusion_NxN: np.ndarray, in_data: Collection[int], names: Sequence[str] | None) -> str | None:
    """Return a warning if classes without images in the data are predicted."""
    guesses = confusion_NxN.sum(axis=0)
    found = [int(index) for index in np.argsort(-guesses, kind="stable") if guesses[index] and index not in in_data]
    if not found:
        return None
    count, images = int(guesses[found].sum()), int(guesses.sum())
    return (
        f"{count} of {images} validation images are predicted as classes of which the data have no image "
        f"({few([_name(index, names) for index in found])}): the head has {len(guesses)} classes, the data "
        f"{len(in_data)}: check --data and --num-classes"
    )


def _chance(confusion_NxN: np.ndarray, names: Sequence[str] | None) -> str | None:
    """Return a warning if top-1 is within two standard deviations of always predicting the most frequent class."""
    counts = confusion_NxN.sum(axis=1)
    images, largest, right = int(counts.sum()), int(counts.argmax()), int(confusion_NxN.trace())
    if np.count_nonzero(counts) < 2:
        return None
    share = counts[largest] / images
    bound = images * share + 2 * math.sqrt(images * share * (1 - share))
    if right > bound or bound >= images:
        return None
    return (
        f"top-1 {100 * right / images:.2f} % is no better than chance: always {_name(largest, names)} would have "
        f"{100 * share:.2f} %: check labels, --lr and --ema-decay"
    )


def _never(confusion_NxN: np.ndarray, names: Sequence[str] | None) -> str | None:
    """Return a warning if no validation image at all is taken for a class that has many of them."""
    counts, guesses = confusion_NxN.sum(axis=1), confusion_NxN.sum(axis=0)
    found = np.flatnonzero((counts >= FEWEST_OF_A_CLASS) & (guesses == 0)).tolist()
    if not found:
        return None
    listed, images = few([_name(index, names) for index in found]), int(counts[found].sum())
    return (
        f"no validation image is taken for {len(found)} of the classes ({listed}), though {images} show them: check "
        "their labels, or train longer"
    )
