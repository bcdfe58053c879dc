"""Fingerprints: equal for every layout of the same values, different after any small change, robust to rounding."""

from __future__ import annotations

import numpy as np
import pytest

from parity.trace.values.fingerprint import CHUNK, Fingerprint, distinct


def values(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal(shape)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    first, second = Fingerprint.of(a), Fingerprint.of(b)
    return first.size == second.size and bool(first.matches(second.sums))


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (7, 11), (CHUNK + 3, 2)])
def test_every_layout_has_the_same_fingerprint(shape: tuple[int, ...]):
    x = values(*shape)
    assert same(x, x.T)
    assert same(x, x.reshape(-1)[::-1])
    assert same(x, np.random.RandomState(1).permutation(x.ravel()))


def test_rounding_does_not_change_it():
    x = values(64, 64)
    assert same(x, x * (1 + 2.0**-50))
    assert same(x, (x.astype(np.longdouble) * 3 / 3).astype(np.float64))


@pytest.mark.parametrize(
    "change",
    [lambda x: -x, lambda x: x * (1 + 1e-8), lambda x: x + 1e-7, lambda x: x**2, np.abs, lambda x: x - x.mean()],
    ids=["sign", "factor", "shift", "square", "absolute", "centred"],
)
def test_a_change_changes_it(change):
    x = values(16, 16)
    assert not same(x, change(x))


def test_one_changed_element_and_one_changed_sign_are_noticed():
    x = values(16, 16)
    other, flipped = x.copy(), x.copy()
    other[3, 4] += 1e-6
    flipped[3, 4] *= -1
    assert not same(x, other)
    assert not same(x, flipped)


def test_an_epsilon_is_noticed():
    x = values(4, 8)
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    assert not same(centred / np.sqrt(variance + 1e-5), centred / np.sqrt(variance + 1e-6))


def test_repetitions_do_not_count():
    x = values(3, 1, 5)
    assert same(x, np.broadcast_to(x, (3, 4, 5)))
    assert distinct(np.broadcast_to(x, (3, 4, 5))).shape == (3, 1, 5)
    assert distinct(np.ones((3, 4))).shape == (1, 1)
    almost = np.broadcast_to(x, (3, 4, 5)).copy()
    almost[0, 3, 0] += 1
    assert distinct(almost).shape == (3, 4, 5)


def test_an_empty_array_and_a_scalar():
    assert Fingerprint.of(np.zeros((0, 3))).size == 0
    assert not Fingerprint.of(np.zeros((0, 3))).identifies
    assert Fingerprint.of(np.array(3.0)).size == 1
    assert not Fingerprint.of(np.array(3.0)).identifies


@pytest.mark.parametrize("value", [0.0, 1.0, np.nan, np.inf])
def test_constants_and_what_is_not_finite_do_not_identify(value: float):
    assert not Fingerprint.of(np.full((3, 4), value)).identifies
    x = values(3, 4)
    x[0, 0] = value
    assert Fingerprint.of(x).identifies == np.isfinite(value)


def test_nan_matches_nothing():
    x = values(3, 4)
    wrong = x.copy()
    wrong[0, 0] = np.nan
    assert not same(x, wrong)
    assert not same(wrong, x)


def test_two_values_of_equal_size_but_opposite_sign_identify():
    assert Fingerprint.of(np.array([1.0, -1.0, 1.0])).identifies


def test_it_is_found_among_others():
    arrays = [values(4, 6, seed=i) for i in range(20)]
    sums = np.stack([Fingerprint.of(x).sums for x in arrays])
    assert np.flatnonzero(Fingerprint.of(arrays[7].T).matches(sums)).tolist() == [7]
