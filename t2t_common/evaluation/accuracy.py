"""Exact top-1 and top-5 accuracy from numpy logits, independent of the framework."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

Forward = Callable[[Any, Any], Any]
"""(arrays of the model, images of a batch) -> logits (B, num_classes), as a numpy array or convertible to one."""


class Accuracy(NamedTuple):
    """Counts over all images, and the accuracies computed from them."""

    images: int
    top1_correct: int
    top5_correct: int

    @property
    def top1(self) -> float:
        """Top-1 accuracy in percent."""
        return 100 * self.top1_correct / self.images

    @property
    def top5(self) -> float:
        """Top-5 accuracy in percent."""
        return 100 * self.top5_correct / self.images

    @property
    def figures(self) -> dict[str, float]:
        """All counts and accuracies by name."""
        return {**self._asdict(), "top1": self.top1, "top5": self.top5}

    def __str__(self) -> str:
        return (
            f"top-1 {self.top1:.2f} % ({self.top1_correct} of {self.images})   "
            f"top-5 {self.top5:.2f} % ({self.top5_correct} of {self.images})"
        )


class Predictions(NamedTuple):
    """Logits (N, num_classes) and labels (N,) of all images, in the order of the data."""

    logits: np.ndarray
    labels: np.ndarray


def predict(forward: Forward, arrays: Any, batches: Iterable[Mapping[str, Any]]) -> Predictions:
    """Return the logits and labels of all images in `batches`, without padding.

    Args:
        forward: Forward function of the model in evaluation mode.
        arrays: All arrays of the model, trainable and frozen.
        batches: Batches of equal size, with `mask` (see `EvalExamples`).
    """
    logits, labels = [], []
    for batch in batches:
        real = np.asarray(batch["mask"])
        logits.append(np.asarray(forward(arrays, batch["image"]))[real])
        labels.append(np.asarray(batch["label"])[real])
    return Predictions(np.concatenate(logits), np.concatenate(labels))


def count(
    forward: Forward, arrays: Any, batches: Iterable[Mapping[str, Any]], *, confusion: np.ndarray | None = None
) -> np.ndarray:
    """Return the counts of `Accuracy`, (3,) int64, over all images in `batches`; see `predict` for the arguments.

    Each image is also added to `confusion` (num_classes, num_classes); row: true class, column: predicted class.
    """
    total = np.zeros(3, np.int64)
    for batch in batches:
        logits, labels = predict(forward, arrays, [batch])
        guesses_Bx5 = top_classes(logits, 5)
        hits_Bx5 = guesses_Bx5 == labels[:, None]
        if confusion is not None:
            np.add.at(confusion, (labels, guesses_Bx5[:, 0]), 1)
        total += [len(labels), np.sum(hits_Bx5[:, 0]), np.sum(hits_Bx5)]
    return total


def count_accuracy(
    forward: Forward,
    arrays: Any,
    batches: Iterable[Mapping[str, Any]],
    *,
    sum_processes: Callable[[np.ndarray], np.ndarray],
    confusion: np.ndarray | None = None,
) -> Accuracy:
    """Return exact counts over all real images in the `batches` of all processes; see `count` for the arguments.

    Args:
        sum_processes: Returns the sum of an array over all processes.
    """
    own = None if confusion is None else np.zeros_like(confusion)
    counts = count(forward, arrays, batches, confusion=own)
    if confusion is not None and own is not None:
        confusion += sum_processes(own)
    return Accuracy(*map(int, sum_processes(counts)))


def top_classes(logits_BxN: np.ndarray, k: int) -> np.ndarray:
    """Return the classes (B, k) of the `k` largest logits in descending order; ties are ordered by class index.

    If there are fewer than `k` classes, all of them are returned.
    """
    return np.argsort(-logits_BxN, axis=-1, kind="stable")[:, :k]
