"""What classes are taken for: a table of all where they are few, else the most frequent mistakes and worst classes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from t2t_common.evaluation.per_class import ClassAccuracy, class_report

MOST_CLASSES = 20
"""In a table of all pairs."""
MOST_PAIRS, MOST_WORST = 12, 12
SHADES = 6
"""Of a cell's colour, from 1; 0 is none."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """How many images of a class were taken for another, or for itself.

    Attributes:
        shade: 0 to SHADES.
    """

    images: int
    right: bool
    shade: int
    text: str


@dataclasses.dataclass(frozen=True)
class Row:
    """A class, how well it is recognised in per cent (None without images), and what it is taken for."""

    name: str
    accuracy: float | None
    cells: Sequence[Cell]


@dataclasses.dataclass(frozen=True)
class Pair:
    """A class that is taken for another: how many of its images, and what share of them in per cent."""

    name: str
    taken_for: str
    images: int
    share: float


@dataclasses.dataclass(frozen=True)
class Confusion:
    """`table` is empty where there are more than MOST_CLASSES, `worst` where there are no more."""

    table: Sequence[Row]
    pairs: Sequence[Pair]
    worst: Sequence[ClassAccuracy]

    @property
    def has_long_names(self) -> bool:
        """Whether the table's columns are too narrow for their names."""
        return any(len(row.name) > 3 for row in self.table)

    @classmethod
    def of(cls, confusion_NxN: np.ndarray, names: Sequence[str]) -> Confusion:
        """From the images of the row's class whose first guess was the column's class, and the names of N classes."""
        if len(confusion_NxN) <= MOST_CLASSES:
            return cls(table(confusion_NxN, names), pairs(confusion_NxN, names), ())
        worst = [one for one in class_report(confusion_NxN, names) if one.images and one.correct < one.images]
        return cls((), pairs(confusion_NxN, names), worst[:MOST_WORST])


def table(confusion_NxN: np.ndarray, names: Sequence[str]) -> list[Row]:
    """Every pair of classes. Right guesses are shaded by their share of the class; mistakes, which are few, by the
    square root of their number."""
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
    """The most frequent mistakes; of equals those of the first classes."""
    of_N = confusion_NxN.sum(axis=1)
    found = [(int(confusion_NxN[i, j]), int(i), int(j)) for i, j in np.argwhere(confusion_NxN) if i != j]
    found.sort(key=lambda one: (-one[0], one[1:]))
    return [Pair(names[i], names[j], images, 100 * images / int(of_N[i])) for images, i, j in found[:MOST_PAIRS]]


def sparse(confusion_NxN: np.ndarray) -> list[list[int]]:
    """[class, first guess, images] where there are any."""
    return [[int(row), int(column), int(confusion_NxN[row, column])] for row, column in np.argwhere(confusion_NxN)]


def dense(counts: Sequence[Sequence[int]], classes: int) -> np.ndarray:
    """The matrix of which `sparse` keeps what is not zero."""
    confusion_NxN = np.zeros((classes, classes), np.int64)
    for row, column, images in counts:
        confusion_NxN[row, column] = images
    return confusion_NxN
