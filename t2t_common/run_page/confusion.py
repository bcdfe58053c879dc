"""Confusion matrix for the report page: full if there are few classes, else the worst confusions and classes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from t2t_common.evaluation.per_class import ClassAccuracy, class_report

MOST_CLASSES = 20
"""Maximum number of classes for a table of all pairs."""
MOST_PAIRS, MOST_WORST = 12, 12
SHADES = 6
"""Number of shades of a cell, from 1; 0 means no shade."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """Number of images of one class that were predicted as a given class.

    Attributes:
        right: Whether the prediction is correct.
        shade: Shade from 0 to SHADES.
        text: Description of the cell.
    """

    images: int
    right: bool
    shade: int
    text: str


@dataclasses.dataclass(frozen=True)
class Row:
    """Row of the table: a class, its accuracy in percent (None without images) and the counts of its predictions."""

    name: str
    accuracy: float | None
    cells: Sequence[Cell]


@dataclasses.dataclass(frozen=True)
class Pair:
    """Confusion of a class with another: number of its images, and their share of the class in percent."""

    name: str
    taken_for: str
    images: int
    share: float


@dataclasses.dataclass(frozen=True)
class Confusion:
    """Confusion summary. `table` is empty if there are more than MOST_CLASSES classes, else `worst` is empty."""

    table: Sequence[Row]
    pairs: Sequence[Pair]
    worst: Sequence[ClassAccuracy]

    @property
    def has_long_names(self) -> bool:
        """Whether some class names are too long for the columns of the table."""
        return any(len(row.name) > 3 for row in self.table)

    @classmethod
    def of(cls, confusion_NxN: np.ndarray, names: Sequence[str]) -> Confusion:
        """Create from a confusion matrix (row: true class, column: predicted class) and the names of the N classes."""
        if len(confusion_NxN) <= MOST_CLASSES:
            return cls(table(confusion_NxN, names), pairs(confusion_NxN, names), ())
        worst = [one for one in class_report(confusion_NxN, names) if one.images and one.correct < one.images]
        return cls((), pairs(confusion_NxN, names), worst[:MOST_WORST])


def table(confusion_NxN: np.ndarray, names: Sequence[str]) -> list[Row]:
    """Return the rows of the table of all pairs of classes.

    Correct predictions are shaded by their share of the class; errors, which are few, by the square root of their
    number.
    """
    mistakes_NxN = confusion_NxN * (1 - np.eye(len(names), dtype=np.int64))
    most = max(1, int(mistakes_NxN.max()))

    def cell(row: int, column: int, images: int, of: int) -> Cell:
        right = row == column
        level = images / max(1, of) if right else math.sqrt(images / most)
        text = f"{names[row]} taken for {names[column]}: {images} of {of}"
        return Cell(images, right, math.ceil(SHADES * level), text)

    rows = []
    for i, counts in enumerate(confusion_NxN.tolist()):
        of = sum(counts)
        accuracy = 100 * counts[i] / of if of else None
        rows.append(Row(names[i], accuracy, [cell(i, column, images, of) for column, images in enumerate(counts)]))
    return rows


def pairs(confusion_NxN: np.ndarray, names: Sequence[str]) -> list[Pair]:
    """Return the most frequent confusions; ties are ordered by class index."""
    of_N = confusion_NxN.sum(axis=1)
    found = [(int(confusion_NxN[i, j]), int(i), int(j)) for i, j in np.argwhere(confusion_NxN) if i != j]
    found.sort(key=lambda one: (-one[0], one[1:]))
    return [Pair(names[i], names[j], images, 100 * images / int(of_N[i])) for images, i, j in found[:MOST_PAIRS]]


def sparse(confusion_NxN: np.ndarray) -> list[list[int]]:
    """Return [true class, predicted class, images] for each non-zero entry."""
    return [[int(row), int(column), int(confusion_NxN[row, column])] for row, column in np.argwhere(confusion_NxN)]


def dense(counts: Sequence[Sequence[int]], classes: int) -> np.ndarray:
    """Return the confusion matrix from its `sparse` entries."""
    confusion_NxN = np.zeros((classes, classes), np.int64)
    for row, column, images in counts:
        confusion_NxN[row, column] = images
    return confusion_NxN
