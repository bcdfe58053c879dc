"""How well each class is recognised, and what it is taken for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from t2t_config.text import escaped


@dataclasses.dataclass(frozen=True)
class Mistaken:
    """How many images of one class were taken for another."""

    index: int
    name: str
    images: int


@dataclasses.dataclass(frozen=True)
class ClassAccuracy:
    """One class: its images, those whose first guess was right, and the other classes, most frequent first."""

    index: int
    name: str
    images: int
    correct: int
    mistaken_for: tuple[Mistaken, ...]

    @property
    def accuracy(self) -> float | None:
        """Share of right first guesses, in per cent; None without images."""
        return 100 * self.correct / self.images if self.images else None

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "accuracy": self.accuracy}


def class_report(confusion_NxN: np.ndarray, names: Sequence[str]) -> list[ClassAccuracy]:
    """Every class, worst first; of equals those with more images, then by index; without images last.

    Args:
        confusion_NxN: images of the row's class whose first guess was the column's class.
        names: of the N classes.
    """
    found = []
    for index, row in enumerate(confusion_NxN):
        others = np.flatnonzero(row)
        order = others[np.argsort(-row[others], kind="stable")].tolist()
        mistaken = tuple(Mistaken(other, names[other], int(row[other])) for other in order if other != index)
        found.append(ClassAccuracy(index, names[index], int(row.sum()), int(row[index]), mistaken))
    return sorted(found, key=lambda one: (one.accuracy is None, one.accuracy, -one.images, one.index))


def as_text(report: Sequence[ClassAccuracy]) -> str:
    """A table: accuracy, images, class, and what it is most often taken for."""
    width = max([len("class"), *(len(_short(one.name)) for one in report)])
    lines = [f"{'top-1':>8}  {'images':>6}  {'class':<{width}}  most often taken for"]
    for one in report:
        share = "-" if one.accuracy is None else f"{one.accuracy:.2f} %"
        others = ", ".join(f"{_short(other.name)} ({other.images})" for other in one.mistaken_for[:3])
        lines.append(f"{share:>8}  {one.images:>6}  {_short(one.name):<{width}}  {others}".rstrip())
    return "\n".join(lines)


def _short(name: str) -> str:
    """ImageNet's names go on with synonyms."""
    return escaped(name.split(",")[0])
