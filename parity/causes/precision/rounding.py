"""Decide whether an error comes from a particular rounding; never from its size alone.

The same function with the same rounding cannot be expected to give JAX's values to the last digit: sums are evaluated
in another order, and a float32 `exp` differs between libraries in its last bit. But most of its roundings (of the
inputs, of a result to 24 bits) are those of JAX, so the errors agree element by element; the correlation of
independent errors would be about 1 / sqrt(n).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from parity.measure.gates import norm

CORRELATION = 0.5
"""Minimum correlation of JAX's error with that of the replay: a quarter of its square is explained."""

SIGMAS = 8.0
"""Minimum correlation as a multiple of 1 / sqrt(n), that of n independent elements."""

RATIO = 2.0
"""Maximum ratio between the sizes of both errors."""

ROWS = 0.9
"""Minimum mean |cosine| between the rows of both errors, where only their directions agree."""

LENGTH = 8
"""Minimum length of a row: the cosine of two short rows is large by chance."""

ROWS_RATIO = 8.0
"""Maximum ratio between the sizes of both errors by rows: the error of each row is one random number."""

Tensors = Sequence[np.ndarray]


def alike(value: Tensors, reference: Tensors, replayed: Tensors, how: str) -> float | None:
    """Return the share of JAX's error that the replay leaves unexplained; None if the errors do not agree."""
    pairs = [_errors(*three) for three in zip(value, reference, replayed, strict=True)]
    if any(found is None for found in pairs):
        return None
    wrong = [found for found in pairs if found is not None and (found[0].any() or found[1].any())]
    shares = [_rows(*found) if how == "rows" else _elements(*found) for found in wrong]
    return max((x for x in shares if x is not None), default=None) if None not in shares else None


def _errors(value: np.ndarray, reference: np.ndarray, replayed: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return both errors, as differences to the reference; None if they cannot be compared."""
    if value.shape != reference.shape or replayed.shape != reference.shape:
        return None
    if not all(np.issubdtype(x.dtype, np.floating) and np.isfinite(x).all() for x in (value, reference, replayed)):
        return None
    r = reference.astype(np.float64)
    return value.astype(np.float64) - r, replayed.astype(np.float64) - r


def _elements(mine: np.ndarray, theirs: np.ndarray) -> float | None:
    a, b = norm(mine), norm(theirs)
    if not a or not b or not 1 / RATIO <= a / b <= RATIO:
        return None
    count = int(((mine != 0) | (theirs != 0)).sum())
    correlation = float(np.vdot(mine, theirs)) / (a * b)
    if correlation < max(CORRELATION, SIGMAS / np.sqrt(count)):
        return None
    return norm(mine - theirs) / a


def _rows(mine: np.ndarray, theirs: np.ndarray) -> float | None:
    """As `_elements`, but with a separate factor and sign for the error of each row.

    A row is a token of a LayerNorm (the last axis) or a channel of a GroupNorm (the spatial axes; channels last, as in
    JAX, or first, as in PyTorch).
    """
    shares = [_by_row(*(f(x) for x in (mine, theirs))) for f in (_tokens, _last_channels, _channels)]
    return min((share for share in shares if share is not None), default=None)


def _tokens(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, x.shape[-1])


def _last_channels(x: np.ndarray) -> np.ndarray:
    return _channels(np.moveaxis(x, -1, 1)) if x.ndim > 2 else _tokens(x)


def _channels(x: np.ndarray) -> np.ndarray:
    return x.reshape(x.shape[0] * x.shape[1], -1) if x.ndim > 2 else _tokens(x)


def _by_row(a: np.ndarray, b: np.ndarray) -> float | None:
    """Compare errors of shape (rows, elements)."""
    if a.shape[-1] < LENGTH:
        return None
    sizes = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    total = float(np.linalg.norm(sizes[0]) / max(float(np.linalg.norm(sizes[1])), 1e-300))
    both = (sizes[0] > 0) & (sizes[1] > 0)
    if not both.any() or not 1 / ROWS_RATIO <= total <= ROWS_RATIO:
        return None
    cosines = np.abs((a * b).sum(1)[both]) / (sizes[0] * sizes[1])[both]
    weight = np.minimum(*(x[both] for x in sizes))
    mean = float((cosines * weight).sum() / weight.sum())
    return None if mean < ROWS else 1 - mean


def random_signs(error: np.ndarray, reference: np.ndarray) -> bool:
    """Return whether an error looks like rounding: in most elements, of either sign, unordered along axes and by size.

    The error of a wrong constant (an epsilon, a scale) is smooth, and visible in one of these orders.
    """
    large = np.abs(error) > 2.0**-40 * np.abs(reference)
    if error.size < 64 or large.mean() < 0.5:
        return False
    up, outward = np.sign(np.where(large, error, 0)), np.sign(np.where(large, error * np.sign(reference), 0))
    return _no_order(up, reference) and _no_order(outward, reference)


def _no_order(signs: np.ndarray, reference: np.ndarray) -> bool:
    """Return whether signs are balanced and uncorrelated between neighbors along any axis or by size."""
    limit = max(0.25, 4 / np.sqrt(signs.size))
    if abs(signs.mean()) > limit:
        return False
    orders = [np.moveaxis(signs, axis, -1) for axis in range(signs.ndim) if signs.shape[axis] > 1]
    orders += [signs.ravel()[np.argsort(np.abs(reference), axis=None)]]
    return all(abs(float((x[..., 1:] * x[..., :-1]).mean())) <= limit for x in orders)
