"""Exact counts over every image, from logits in numpy, whatever computed them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

Forward = Callable[[Any, Any], Any]
"""(arrays of the model, images of a batch) -> logits (B, num_classes), anything that numpy takes."""


class Accuracy(NamedTuple):
    """Counts over all images, and the shares they make."""

    images: int
    top1_correct: int
    top5_correct: int

    @property
    def top1(self) -> float:
        """Share of right first guesses, in per cent."""
        return 100 * self.top1_correct / self.images

    @property
    def top5(self) -> float:
        """Share of labels among the five best guesses, in per cent."""
        return 100 * self.top5_correct / self.images

    @property
    def figures(self) -> dict[str, float]:
        """Everything by name."""
        return {**self._asdict(), "top1": self.top1, "top5": self.top5}

    def __str__(self) -> str:
        return (
            f"top-1 {self.top1:.2f} % ({self.top1_correct} of {self.images})   "
            f"top-5 {self.top5:.2f} % ({self.top5_correct} of {self.images})"
        )


class Predictions(NamedTuple):
    """Logits (N, num_classes) and labels (N,) of all images, in the data's order."""

    logits: np.ndarray
    labels: np.ndarray


def predict(forward: Forward, arrays: Any, batches: Iterable[Mapping[str, Any]]) -> Predictions:
    """Logits of every real image in `batches`.

    Args:
        forward: the model in evaluation mode.
        arrays: of the model, trained and frozen.
        batches: all of one size, with `mask` (see `EvalExamples`).
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
    """The counts of `Accuracy` over every real image in `batches`, (3,) int64; arguments as of `predict`.

    Every image is also added to `confusion` (num_classes, num_classes): row its class, column the first guess.
    """
    total = np.zeros(3, np.int64)
    for batch in batches:
        logits, labels = predict(forward, arrays, [batch])
        guesses_Bx5 = best_guesses(logits, 5)
        hits_Bx5 = guesses_Bx5 == labels[:, None]
        if confusion is not None:
            np.add.at(confusion, (labels, guesses_Bx5[:, 0]), 1)
        total += [len(labels), np.sum(hits_Bx5[:, 0]), np.sum(hits_Bx5)]
    return total


def best_guesses(logits_BxN: np.ndarray, k: int) -> np.ndarray:
    """The classes (B, k) of the `k` largest logits, the largest first; of equal logits the lower class counts as more.

    With fewer than `k` classes, all of them.
    """
    return np.argsort(-logits_BxN, axis=-1, kind="stable")[:, :k]


def count_top_k(logits_BxN: np.ndarray, labels_B: np.ndarray, k: int) -> int:
    """How many labels are among the `k` best guesses."""
    return int(np.sum(best_guesses(logits_BxN, k) == labels_B[:, None]))


def first_guess(logits_BxN: np.ndarray) -> np.ndarray:
    """The class (B,) with the largest logit."""
    return best_guesses(logits_BxN, 1)[:, 0]
