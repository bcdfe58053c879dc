"""Fingerprints of arrays that do not depend on the layout, to find the same values in the other framework."""

from __future__ import annotations

import dataclasses

import numpy as np

TOLERANCE = 1e-12
"""Largest difference of two fingerprints of the same values, relative to the sums of absolute terms.

The sums of two right float64 runs differ by about 1e-14; a wrong epsilon of 1e-6 in a
sum of attention weights changes them by 1e-10.
"""


CHUNK = 2**15
"""Number of elements summed at once, so that they stay in the processor's cache."""


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """Sums over all elements, which a permutation, a reshape or another order of the axes does not change.

    Attributes:
        size: Number of elements.
        sums: Sums of x, |x|, x^2, x |x| and x^3 (float64).
        scales: Sums of the absolute values of the terms, to which rounding errors are relative.
    """

    size: int
    sums: np.ndarray
    scales: np.ndarray

    @classmethod
    def of(cls, array: np.ndarray) -> Fingerprint:
        """Return the fingerprint of `array` without its repetitions (see `distinct`)."""
        whole = np.asarray(distinct(array), np.float64).ravel()
        total = np.zeros(6)
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, whole.size, CHUNK):
                x = whole[start : start + CHUNK]
                a = np.abs(x)
                b = a * a  # not by @: small products on several threads take longer than on one
                total += (x.sum(), a.sum(), b.sum(), (x * a).sum(), (b * x).sum(), (b * a).sum())
        _, first, second, _, _, third = total
        return cls(whole.size, total[:5], np.array([first, first, second, second, third]))

    def matches(self, sums: np.ndarray) -> np.ndarray:
        """Return which rows of `sums` (K, 5) are fingerprints of the same values."""
        with np.errstate(invalid="ignore"):
            close: np.ndarray = (np.abs(sums - self.sums) <= TOLERANCE * self.scales + 1e-300).all(axis=-1)
        return close

    @property
    def identifies(self) -> bool:
        """Whether the values are finite and not all the same, so that they can be recognised."""
        total, first, second, *_ = (float(x) for x in self.sums)
        if self.size < 2 or not np.isfinite(self.sums).all() or second == 0:
            return False
        return abs(second * self.size - first * first) > 1e-12 * first * first or abs(total) < first


def distinct(array: np.ndarray) -> np.ndarray:
    """Return `array` without the axes along which it only repeats itself, as after a broadcast."""
    for axis in range(array.ndim):
        if array.shape[axis] > 1:
            first = array.take([0], axis)
            if np.array_equal(first, array.take([1], axis)) and bool((array == first).all()):
                array = first
    return array
