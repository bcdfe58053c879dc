"""Counts from logits: every real image once, ties and what is not finite never as right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from t2t_common.evaluation.accuracy import Accuracy, count, predict, top_classes


@pytest.fixture
def logits() -> np.ndarray:
    return 3 * np.random.RandomState(0).standard_normal((6, 10))


def batches(logits: np.ndarray) -> list[dict[str, Any]]:
    """Six images, whose logits are their pixels, in two batches of four; the last two rows are filling."""
    filled = np.concatenate([logits, np.full((2, 10), 9.0)])
    labels, mask = np.array([0, 1, 2, 3, 4, 5, 0, 0]), np.arange(8) < 6
    return [{"image": filled[rows], "label": labels[rows], "mask": mask[rows]} for rows in (slice(4), slice(4, 8))]


def test_the_filling_is_not_counted(logits: np.ndarray):
    forward = lambda arrays, images: arrays * images  # noqa: E731
    found = predict(forward, 2.0, batches(logits))
    np.testing.assert_array_equal(found.logits, 2 * logits)
    np.testing.assert_array_equal(found.labels, np.arange(6))
    confusion = np.zeros((10, 10), np.int64)
    counts = Accuracy(*count(forward, 1.0, batches(logits), confusion=confusion).tolist())
    right = logits.argmax(axis=1) == np.arange(6)
    assert (counts.images, counts.top1_correct) == (6, right.sum())
    assert confusion.sum() == 6
    assert np.trace(confusion) == right.sum()
    assert counts.top1 == pytest.approx(100 * right.mean())
    assert str(counts).startswith(f"top-1 {counts.top1:.2f} % ({right.sum()} of 6)")


def hits(logits: np.ndarray, labels: np.ndarray, k: int) -> int:
    return int((top_classes(logits, k) == labels[:, None]).sum())


def test_the_best_guesses_hold_the_label(logits: np.ndarray):
    order = np.argsort(-logits, axis=1)
    labels = np.array([order[0, 0], order[1, 1], order[2, 4], order[3, 5], order[4, 9], order[5, 0]])
    assert hits(logits, labels, 1) == 2
    assert hits(logits, labels, 5) == 4
    assert hits(logits, labels, 50) == 6


def test_ties_and_nan_are_not_counted_as_right():
    assert hits(np.zeros((1, 4)), np.array([3]), 1) == 0
    assert hits(np.array([[0.0, np.nan]]), np.array([1]), 1) == 0


def test_of_equal_logits_the_lower_class_is_the_guess():
    assert top_classes(np.array([[1.0, 2.0, 2.0], [np.nan, 0.0, 0.0]]), 1).tolist() == [[1], [1]]
