"""Relations between a wrong tensor and the right one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from parity.causes.fit_constant import fitted
from parity.causes.relations import relations
from parity.measure.gates import rel_f

DRAW = np.random.RandomState(0)
R = DRAW.standard_normal((3, 6, 4))
X, Z = DRAW.standard_normal((2, 3, 6, 4))
P = np.exp(R) / np.exp(R).sum(-1, keepdims=True)


def first(value: np.ndarray, reference: np.ndarray = R) -> str | None:
    """The switch of the first relation that predicts `value`."""
    others = (("x", X), ("z", Z))
    found = (r for r in relations(value, reference, others) if rel_f(value, r.predicted) <= 1e-13)
    return next((relation.switch for relation in found), None)


CASES: dict[str, tuple[Callable[[], np.ndarray], str]] = {
    "zeros": (lambda: 0 * R, "all zeros"),
    "float32": (lambda: R.astype(np.float32).astype(np.float64), "float32 leak"),
    "half": (lambda: R.astype(np.float16).astype(np.float64), "float16 leak"),
    "flipped": (lambda: R[:, ::-1], "axis flipped"),
    "rolled": (lambda: np.roll(R, -1, 2), "shifted by one"),
    "thirds": (lambda: np.roll(R, 2, 1), "parts order"),
    "shuffled": (lambda: R[:, [0, 3, 1, 2, 5, 4]], "axis permuted"),
    "another": (lambda: X, "wrong tensor"),
    "added": (lambda: R + X, "residual"),
    "missing": (lambda: R - Z, "residual"),
    "exchanged": (lambda: R - X + Z, "residual"),
    "multiple": (lambda: -0.3 * R, "scale"),
    "dropped": (lambda: np.where(DRAW.random_sample(R.shape) < 0.8, R / 0.8, 0), "dropout on"),
    "activated": (lambda: np.maximum(R, 0), "extra step"),
    "biased": (lambda: R + np.arange(4), "bias"),
    "weighted": (lambda: R * np.arange(1, 7)[:, None], "scale"),
}


@pytest.mark.parametrize("name", CASES)
def test_each_relation_is_found(name: str) -> None:
    make, switch = CASES[name]
    assert first(make()) == switch


def test_a_temperature_is_found_in_probabilities() -> None:
    hot = P**2.5 / (P**2.5).sum(-1, keepdims=True)
    assert first(hot, P) == "attention scale"


def test_nothing_relates_to_noise() -> None:
    assert first(R + 1e-3 * DRAW.standard_normal(R.shape)) is None


def test_what_cannot_be_compared_has_no_relation() -> None:
    assert list(relations(R[:2], R)) == []
    assert list(relations(np.full_like(R, np.nan), R)) == []


def test_a_number_that_hardly_shows_is_fitted_without_dividing_by_zero() -> None:
    step = 1e-170 * np.arange(1.0, 17.0)  # its squares are 0 in float64
    assert fitted(lambda number: 1 + number * step, 1 + 3 * step, 1.0) is None


def test_what_is_fitted_needs_more_elements_than_numbers() -> None:
    # One logit, two probabilities, one row for each channel, the same row again: any tensor would fit.
    assert first(np.array([[3.0]]), np.array([[2.0]])) is None
    assert first(np.array([[0.2, 0.8]]), np.array([[0.4, 0.6]])) is None
    assert first(DRAW.standard_normal((2, 5)), DRAW.standard_normal((2, 5))) is None
    rows = np.repeat(DRAW.standard_normal((2, 1, 5)), 8, axis=1)
    assert first(rows[0], rows[1]) is None
    # All but one channel are zero: one number would be fitted to nothing else.
    few = np.zeros((4, 4))
    few[0, 0] = 1.0
    assert first(1.7 * few, few) is None


def test_a_branch_that_is_scaled_otherwise_is_found() -> None:
    assert first(R + 0.3 * X) == "residual"
