"""Open the data of a run and check it against the recipe before the model is built."""

from __future__ import annotations

import dataclasses

from t2t_common.data import check_classes, head_classes, open_source, steps_per_epoch, with_token_labels
from t2t_common.data.classes import same_classes
from t2t_common.data.preprocess import Preprocess
from t2t_common.data.readers.formats import is_unsplit
from t2t_common.data.readers.sources import Source
from t2t_common.evaluation.evaluate_command import new_confusion
from t2t_common.run.warnings import head_note
from t2t_config import FromData, Recipe, fit_to_data


@dataclasses.dataclass(frozen=True)
class Data:
    """Training and validation data of a run.

    Attributes:
        recipe: Recipe with the number of classes of the head and the values that depend on the data filled in.
        preprocess: Preprocessing of the images.
        notes: Notes for the user: values chosen for the data, and a head with other classes than the recipe's.
    """

    recipe: Recipe
    train: Source
    val: Source
    preprocess: Preprocess
    steps_per_epoch: int
    notes: list[str]

    @property
    def num_classes(self) -> int:
        """Number of classes of the model's head."""
        assert self.recipe.num_classes is not None
        return self.recipe.num_classes


def open_data(recipe: Recipe, *, from_weights: bool = False) -> Data:
    """Open the training and validation data of `recipe`, and fit it to them (see `fit_to_data`).

    Args:
        recipe: Recipe to train.
        from_weights: Whether the run starts from given weights.

    Raises:
        FileNotFoundError, ValueError: There are no data or they do not match the recipe; the message says why.
    """
    if recipe.data is None:
        raise ValueError("this recipe needs data: add --data DIR")
    if isinstance(recipe.val_fraction, FromData):
        fraction = float(recipe.val_fraction) if is_unsplit(recipe.data) else None
        recipe = dataclasses.replace(recipe, val_fraction=fraction)
    train = open_source(recipe.data, "train", recipe.num_classes, recipe.val_fraction)
    val = open_source(recipe.data, "val", recipe.num_classes, recipe.val_fraction)
    val = same_classes(train, val)
    num_classes = head_classes(recipe, train, val)
    check_classes(train, num_classes)
    check_classes(val, num_classes)
    note = head_note(recipe.num_classes, num_classes, max(train.num_classes, val.num_classes))
    new_confusion(num_classes)  # needed by the first evaluation: fail now rather than after an epoch
    recipe, chosen = fit_to_data(
        dataclasses.replace(recipe, num_classes=num_classes), len(train), from_weights=from_weights
    )
    train = with_token_labels(train, recipe)
    steps = steps_per_epoch(train, recipe.batch_size)
    return Data(recipe, train, val, Preprocess.of_recipe(recipe), steps, [text for text in (chosen, note) if text])
