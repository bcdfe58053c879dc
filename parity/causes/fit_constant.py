"""Fit one unknown constant of a step (a scale, an epsilon, a slope) to JAX's values.

There is one unknown and one equation per element: if all hold to rounding, this is no coincidence.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from parity.measure.gates import norm

EQUATIONS = 8
"""Minimum number of elements that must depend on the constant."""

ROUNDS = 12
STARTS = (1.0, 4.0, 0.25)
CLOSE = 1e-12


def fitted(values: Callable[[float], np.ndarray | None], wanted: np.ndarray, start: float) -> float | None:
    """Return the positive number at which `values` equals `wanted` (Gauss-Newton in its logarithm); None if none."""
    if start <= 0 or wanted.size < EQUATIONS or not np.isfinite(wanted).all():
        return None
    for factor in STARTS:
        number = _newton(values, wanted, start * factor)
        if number is not None:
            return None if math.isclose(number, start, rel_tol=1e-9) else number
    return None


def _newton(values: Callable[[float], np.ndarray | None], wanted: np.ndarray, number: float) -> float | None:
    scale, last, step = norm(wanted), math.inf, 1e-6
    for _ in range(ROUNDS):
        here, near = values(number), values(number * (1 + step))
        if here is None or near is None or here.shape != wanted.shape:
            return None
        if not (np.isfinite(here).all() and np.isfinite(near).all()):
            return None
        error = norm(here - wanted)
        slope = (near - here) / step
        size = norm(slope)
        if error > 2 * last or not size:
            return None
        last = error
        # Divided twice: the square of a small size underflows to zero.
        number *= math.exp(max(-1.5, min(1.5, -float(np.vdot(slope / size, here - wanted)) / size)))
        if error <= CLOSE * scale:
            return number if (np.abs(slope) > 1e-9 * np.abs(slope).max()).sum() >= EQUATIONS else None
    return None
