"""Accuracy and most frequent confusions per class."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from t2t_config.text import escaped


@dataclasses.dataclass(frozen=True)
class Confusion:
    """Number of images that were misclassified as this class."""

    index: int
    name: str
    images: int


@dataclasses.dataclass(frozen=True)
class ClassAccuracy:
    """Results of one class: its images, correct top-1 predictions, and confusions, most frequent first."""

    index: int
    name: str
    images: int
    correct: int
    mistaken_for: tuple[Confusion, ...]

    @property
    def accuracy(self) -> float | None:
        """Top-1 accuracy in percent; None without images."""
        return 100 * self.correct / self.images if self.images else None

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "accuracy": self.accuracy}


def class_report(confusion_NxN: np.ndarray, names: Sequence[str]) -> list[ClassAccuracy]:
    """Return the results of all classes, worst first; ties by number of images (descending), then index.

    Classes without images come last.

    Args:
        confusion_NxN: Confusion matrix; row: true class, column: predicted class.
        names: Names of the N classes.
    """
    found = []
    for index, row in enumerate(confusion_NxN):
        others = np.flatnonzero(row)
        order = others[np.argsort(-row[others], kind="stable")].tolist()
        mistaken = tuple(Confusion(other, names[other], int(row[other])) for other in order if other != index)
        found.append(ClassAccuracy(index, names[index], int(row.sum()), int(row[index]), mistaken))
    return sorted(found, key=lambda one: (one.accuracy is None, one.accuracy, -one.images, one.index))


def as_text(report: Sequence[ClassAccuracy]) -> str:
    """Format a table of accuracy, images, class, and most frequent confusions."""
    width = max([len("class"), *(len(_short(one.name)) for one in report)])
    lines = [f"{'top-1':>8}  {'images':>6}  {'class':<{width}}  most often confused with"]
    for one in report:
        share = "-" if one.accuracy is None else f"{one.accuracy:.2f} %"
        others = ", ".join(f"{_short(other.name)} ({other.images})" for other in one.mistaken_for[:3])
        lines.append(f"{share:>8}  {one.images:>6}  {_short(one.name):<{width}}  {others}".rstrip())
    return "\n".join(lines)


def _short(name: str) -> str:
    """Return the name without the synonyms that ImageNet names include."""
    return escaped(name.split(",")[0])
