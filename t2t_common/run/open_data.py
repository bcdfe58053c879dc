"""Open the data of a run and check it against the recipe before the model is built."""

from __future__ import annotations

import dataclasses

from t2t_common.data import check_classes, head_classes, open_source, steps_per_epoch, with_token_labels
from t2t_common.data.classes import same_classes
from t2t_common.data.preprocess import Preprocess
from t2t_common.data.readers.sources import Source
from t2t_common.evaluation.evaluate_command import new_confusion
from t2t_common.run.warnings import head_note
from t2t_config import Recipe


@dataclasses.dataclass(frozen=True)
class Data:
    """Training and validation data of a run.

    Attributes:
        recipe: Recipe with the number of classes of the head filled in.
        preprocess: Preprocessing of the images.
        note: Note for the user if the head has another number of classes than the recipe; else None.
    """

    recipe: Recipe
    train: Source
    val: Source
    preprocess: Preprocess
    steps_per_epoch: int
    note: str | None

    @property
    def num_classes(self) -> int:
        """Number of classes of the model's head."""
        assert self.recipe.num_classes is not None
        return self.recipe.num_classes

    @property
    def notes(self) -> list[str]:
        return [] if self.note is None else [self.note]


def open_data(recipe: Recipe) -> Data:
    """Open the training and validation data of `recipe`.

    Raises:
        FileNotFoundError, ValueError: There are no data or they do not match the recipe; the message says why.
    """
    if recipe.data is None:
        raise ValueError("this recipe needs data: add --data DIR")
    train = open_source(recipe.data, "train", recipe.num_classes, recipe.val_fraction)
    val = open_source(recipe.data, "val", recipe.num_classes, recipe.val_fraction)
    val = same_classes(train, val)
    num_classes = head_classes(recipe, train, val)
    check_classes(train, num_classes)
    check_classes(val, num_classes)
    note = head_note(recipe.num_classes, num_classes, max(train.num_classes, val.num_classes))
    new_confusion(num_classes)  # needed by the first evaluation: fail now rather than after an epoch
    recipe = dataclasses.replace(recipe, num_classes=num_classes)
    train = with_token_labels(train, recipe)
    steps = steps_per_epoch(train, recipe.batch_size)
    return Data(recipe, train, val, Preprocess.of_recipe(recipe), steps, note)
