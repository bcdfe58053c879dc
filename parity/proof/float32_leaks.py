"""float32 leaks: results of a float64 run that are float32 numbers.

A layer with an internal cast to float32 is right to seven digits but not to sixteen, and a float32 run does not show
it. In a float64 run, 29 of the 53 mantissa bits are zero in every element of its output, which does not happen by
chance. Values that are only passed through (images, tables, rearrangements, one-hot, zeros) are legitimate, so a short
number counts only if its mantissa is not that of an input or a parameter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np

from parity.carry.convert import to_numpy
from parity.judgement.rows import ZERO_BY_STRUCTURE
from parity.measure.gates import norm, real_numbers
from parity.pairing.match_calls import Pair
from parity.recording.capture import Call, Key

FORMATS = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}
"""Formats in order of length: every bfloat16 number is also a float32 number."""

DISTINCT = 8
"""Minimum number of distinct values for a leak; tensors with fewer (masks, one-hot, counts) are ignored."""


def leaks(
    pairs: Sequence[Pair],
    references: Mapping[Key, Call],
    calls: Mapping[Key, Call],
    tables: Sequence[np.ndarray] = (),
) -> dict[str, str]:
    """Return a description of the leak of each module that leaks in a float64 run of either framework.

    Args:
        references: PyTorch's calls in JAX's layout, by JAX's names.
        calls: JAX's own calls, free or forced.
        pairs: Pairs whose calls were recorded. They must include the modules inside each module, whose outputs are
            among its sources.
        tables: Short numbers that the models hold besides their weights; like weights, they may be passed through.
    """
    found: dict[str, str] = {}
    for framework, side in (("PyTorch", references), ("JAX", calls)):
        for pair in pairs:
            if pair.jax not in side or not any(short_format(x) for x in side[pair.jax].outputs):
                continue
            inner = [side[other.jax] for other in pairs if _inside(other, pair) and other.jax in side]
            given = (side[pair.jax].inputs or []) + [x for call in inner for x in call.outputs]
            tensors = [*pair.module.parameters(), *pair.module.buffers()]
            sources = [*given, *tables, *(to_numpy(x) for x in tensors if x.is_floating_point() or x.is_complex())]
            format_ = leaked_format(side[pair.jax].outputs, sources)
            if format_ is not None:
                text = f"{framework}'s output holds only {format_} numbers in a float64 run, and its inputs do not"
                found[pair.name or "the model"] = "; ".join(filter(None, (found.get(pair.name), text)))
    return found


def _inside(inner: Pair, outer: Pair) -> bool:
    return inner is not outer and (not outer.torch[0] or inner.torch[0].startswith(outer.torch[0] + "."))


def gradient_leaks(
    ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], inputs: Sequence[np.ndarray] = ()
) -> dict[str, str]:
    """Return a description for each parameter whose float64 gradient, in PyTorch or JAX, holds only shorter numbers.

    Numbers of `inputs` do not count: the gradient of a first layer may be the input itself. The rounding error of a
    structurally zero gradient (a key's bias) does not count either: a few roundings of terms of equal size are short.
    """
    found: dict[str, str] = {}
    for framework, gradients in (("PyTorch", ours), ("JAX", theirs)):
        least = ZERO_BY_STRUCTURE * math.sqrt(sum(norm(gradient) ** 2 for gradient in gradients.values()))
        told = {name: gradient for name, gradient in gradients.items() if norm(gradient) >= least}
        formats = {name: leaked_format([gradient], inputs) for name, gradient in told.items()}
        for name, format_ in formats.items():
            if format_ is not None:
                text = f"{framework}'s gradient holds only {format_} numbers in a float64 run"
                found[name] = "; ".join(filter(None, (found.get(name), text)))
    return found


def leaked_format(outputs: Sequence[np.ndarray], sources: Sequence[np.ndarray]) -> str | None:
    """Return the short format that holds all of an output whose mantissas are not those of `sources`, if any."""
    for output in outputs:
        format_ = short_format(output)
        if format_ is None:
            continue
        digits = _digits(output)
        if digits.size and sources:
            known = np.unique(np.concatenate([_digits(x) for x in sources if x.size] or [digits[:0]]))
            digits = digits[~np.isin(digits, known)]
        if digits.size >= DISTINCT:
            return format_
    return None


def short_format(array: np.ndarray) -> str | None:
    """Return the shortest format that represents every element of a float64 array exactly; None if only float64 does.

    For a complex128 array, the real and imaginary parts are tested.
    """
    if array.dtype == np.complex128:
        array = real_numbers(array)[0]
    if array.dtype != np.float64 or not array.any():
        return None
    sample = array.ravel()[:: max(1, array.size // 64)]
    if not np.array_equal(sample.astype(np.float32), sample):
        return None
    for name, dtype in FORMATS.items():
        with np.errstate(over="ignore", under="ignore"):
            if np.array_equal(array.astype(dtype).astype(np.float64), array):
                return name
    return None


def _digits(array: np.ndarray) -> np.ndarray:
    """Return the distinct mantissas of |x|, without the power of two, so that x / 2 matches x."""
    mantissas = np.unique(np.abs(np.frexp(real_numbers(array)[0].ravel())[0]))
    return mantissas[~np.isin(mantissas, (0.0, 0.5))]
