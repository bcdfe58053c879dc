"""The data of a run, opened and checked against its recipe before a model is built."""

from __future__ import annotations

import dataclasses

from t2t_common.data import check_classes, head_classes, open_source, steps_per_epoch, with_token_labels
from t2t_common.data.preprocess import Preprocess
from t2t_common.data.readers.sources import Source
from t2t_common.evaluation.evaluate_command import new_confusion
from t2t_common.run.warnings import head_note
from t2t_config import Recipe


@dataclasses.dataclass(frozen=True)
class Data:
    """Training and validation images.

    Attributes:
        recipe: with the number of classes that the head gets.
        how: how images become inputs of the model.
        note: what to say about the head, if its classes are not those that the recipe names.
    """

    recipe: Recipe
    train: Source
    val: Source
    how: Preprocess
    steps_per_epoch: int
    note: str | None

    @property
    def num_classes(self) -> int:
        """Of the model's head."""
        assert self.recipe.num_classes is not None
        return self.recipe.num_classes

    @property
    def notes(self) -> list[str]:
        return [] if self.note is None else [self.note]


def open_data(recipe: Recipe) -> Data:
    """The data that `recipe` names.

    Raises:
        FileNotFoundError, ValueError: there are none, or they do not fit the recipe; the message says why.
    """
    if recipe.data is None:
        raise ValueError("this recipe has no data of its own: add --data DIR")
    train = open_source(recipe.data, "train", recipe.num_classes)
    val = open_source(recipe.data, "val", recipe.num_classes)
    num_classes = head_classes(recipe, train, val)
    check_classes(train, num_classes)
    check_classes(val, num_classes)
    note = head_note(recipe.num_classes, num_classes, max(train.num_classes, val.num_classes))
    new_confusion(num_classes)  # which the first evaluation needs: fail now rather than after an epoch
    recipe = dataclasses.replace(recipe, num_classes=num_classes)
    train = with_token_labels(train, recipe)
    steps = steps_per_epoch(train, recipe.batch_size)
    return Data(recipe, train, val, Preprocess.of_recipe(recipe), steps, note)
