"""Whether an error is that of another rounding: never by its size alone.

The same function rounded otherwise cannot be expected to give JAX's numbers to the last digit: sums run in another
order, and a float32 `exp` differs between libraries in its last bit. But most of its roundings (of the inputs, of a
result to 24 digits) are those of JAX, so the errors agree element by element; by chance they would correlate by
1 / sqrt(n).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from parity.measure.gates import norm

CORRELATION = 0.5
"""The least correlation of JAX's error with the replay's: a quarter of its square is explained."""

SIGMAS = 8.0
"""By chance the correlation of n elements is 1 / sqrt(n); it has to be this many times more."""

RATIO = 2.0
"""The sizes of both errors differ at most by this factor."""

ROWS = 0.9
"""The least mean |cosine| between the rows of both errors, where only their directions agree."""

LENGTH = 8
"""Numbers that a row has at least: the cosine of two short ones is large by chance."""

ROWS_RATIO = 8.0
"""The sizes of both errors may differ by this factor there: each row's is one random number."""

Tensors = Sequence[np.ndarray]


def alike(value: Tensors, reference: Tensors, replayed: Tensors, how: str) -> float | None:
    """The share of JAX's error that the replay leaves unexplained; None if the errors do not agree."""
    pairs = [_errors(*three) for three in zip(value, reference, replayed, strict=True)]
    if any(found is None for found in pairs):
        return None
    wrong = [found for found in pairs if found is not None and (found[0].any() or found[1].any())]
    shares = [_rows(*found) if how == "rows" else _elements(*found) for found in wrong]
    return max((x for x in shares if x is not None), default=None) if None not in shares else None


def _errors(value: np.ndarray, reference: np.ndarray, replayed: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Both errors, as distances to the reference; None if there are none to compare."""
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
    """As `_elements`, but each row may err by a factor and a sign of its own: a token of a LayerNorm (the last axis), a
    channel of a GroupNorm (the others but for the batch, channels last, as in JAX; or those behind it, as in PyTorch).
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
    """Of errors (rows, numbers)."""
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
    """Whether an error looks like rounding: in most elements, of either sign, without order along any axis or by size.

    What a wrong constant does (an epsilon, a scale) is smooth, and shows in one of these orders.
    """
    large = np.abs(error) > 2.0**-40 * np.abs(reference)
    if error.size < 64 or large.mean() < 0.5:
        return False
    up, outward = np.sign(np.where(large, error, 0)), np.sign(np.where(large, error * np.sign(reference), 0))
    return _no_order(up, reference) and _no_order(outward, reference)


def _no_order(signs: np.ndarray, reference: np.ndarray) -> bool:
    """Whether signs are balanced, and neighbours along any axis, or by size, do not share theirs."""
    limit = max(0.25, 4 / np.sqrt(signs.size))
    if abs(signs.mean()) > limit:
        return False
    orders = [np.moveaxis(signs, axis, -1) for axis in range(signs.ndim) if signs.shape[axis] > 1]
    orders += [signs.ravel()[np.argsort(np.abs(reference), axis=None)]]
    return all(abs(float((x[..., 1:] * x[..., :-1]).mean())) <= limit for x in orders)
