"""float32 leaks: results of a float64 run that are float32 numbers.

A layer that casts to float32 in between is right to seven digits and wrong to sixteen; in float32 nothing shows. In a
float64 run its output betrays it: 29 of 53 binary digits are zero in every element, which never happens by chance.
What happens legitimately is that numbers are only passed on (images, tables, rearrangements, one-hot, zeros); so a
short number counts only if its digits are not those of an input or a parameter.
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
"""Shortest first: every bfloat16 number is a float32 number."""

DISTINCT = 8
"""A tensor with fewer different values than this says nothing: masks, one-hot, counts."""


def leaks(
    pairs: Sequence[Pair],
    references: Mapping[Key, Call],
    calls: Mapping[Key, Call],
    tables: Sequence[np.ndarray] = (),
) -> dict[str, str]:
    """Module -> what leaks there, for both frameworks, from the calls of a float64 run.

    Args:
        references: PyTorch's calls in JAX's layout, by JAX's names.
        calls: JAX's own calls, free or forced.
        pairs: those whose calls are at hand; a module is judged with the results of the modules inside it, so these
            have to be at hand too.
        tables: short numbers that the models hold apart from their weights: like these, they may be passed on.
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
    """Parameter -> what leaks there, in PyTorch or in JAX: a float64 gradient that holds only shorter numbers.

    Those of `inputs` do not count: the gradient of a first layer may be the input itself. Nor does the rounding that is
    left of a gradient which is zero by structure (a key's bias): a few roundings of terms of one size are short.
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
    """The short format that holds all of some output although its digits come from none of the `sources`."""
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
    """The shortest format that holds every element of a float64 array exactly; None if float64 alone does.

    Of a complex128 array, real and imaginary parts.
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
    """The different mantissas: |x| with its power of two removed, so that x / 2 is as well known as x."""
    mantissas = np.unique(np.abs(np.frexp(real_numbers(array)[0].ravel())[0]))
    return mantissas[~np.isin(mantissas, (0.0, 0.5))]
