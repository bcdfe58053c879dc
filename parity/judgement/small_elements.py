"""Errors in small elements of a tensor with huge ones, which relF of the whole tensor does not resolve.

Masked logits of -1e9 or finfo.min, or one exploding channel, dominate ||b||, so an error in the ordinary elements is
invisible in relF. The elements that relF does not resolve are therefore also measured relative to their own size,
grouped into bands of the scale

    S_i = max(|b_i|, kappa_i, floor),    error of a band = sqrt(sum e_i^2 / sum S_i^2)    (gate: 1e-10, `LOOSER`)

kappa_i is the measured noise of the element in units of 2^-24: the deviation from the float64 oracle of PyTorch's
float32 run, and of a float64 run on inputs perturbed by one float32 rounding. It reflects the size of the terms that
cancel in the element, so cancellation does not count as an error. For the choice of the constants see the docs,
"Tolerances".
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from parity.measure.gates import Gates, Row, norm, real_numbers
from parity.recording.capture import Call, Key
from parity.runs.torch_side import Gradients

LOOSER = 1e3
"""Ratio of a band's gate to relF's: 1e-10 for 1e-13. Rounding is about 1e-16 of S, a wrong element 1e-5 of it."""

RESOLVED = 1e8
"""With a relF gate g, elements of at least g * RESOLVED * ||b|| are left to relF: it detects a relative error of 1e-8
in one of them."""

FLOOR = 1e-3
"""Lower bound of S in units of the ordinary element size (1 for activations), so that a band allows an error of at
least 1e-13, as relF does for a tensor of size 1.

Functions such as 1 + exp(x) and 1 - cos(x) introduce terms of size 1, whose rounding limits smaller elements.
"""

DECADES = 3
"""Width of a band in powers of ten."""

ROUNDING = 2.0**-24

UNSEEN = "which relF does not see"


@dataclasses.dataclass(frozen=True)
class Small:
    """Elements of one tensor that relF does not resolve.

    Attributes:
        places: flat indices of the elements among the tensor's real numbers.
        wanted: reference values at these indices.
        scale: scale S at these indices.
        limit: size from which elements are left to relF.
        beside: largest finite element of the tensor.
    """

    places: np.ndarray
    wanted: np.ndarray
    scale: np.ndarray
    limit: float
    beside: float

    def known(self, draws: Sequence[np.ndarray]) -> Small:
        """Return a copy with the scale raised to the noise measured by `draws`, runs of PyTorch (whole tensors)."""
        return self.noisy([_at(draw, self.places) for draw in draws])

    def noisy(self, draws: Sequence[np.ndarray]) -> Small:
        """As `known`, with draws of these elements only; drop elements whose noise is large enough for relF."""
        scale = self.scale
        with np.errstate(over="ignore", invalid="ignore"):
            for draw in draws:
                kappa = np.nan_to_num(np.abs(draw - self.wanted) / ROUNDING, nan=np.inf, posinf=np.inf)
                scale = np.maximum(scale, np.maximum(kappa, self._usual(kappa)))
        keep = scale < self.limit
        return Small(self.places[keep], self.wanted[keep], scale[keep], self.limit, self.beside)

    def _usual(self, kappa: np.ndarray) -> np.ndarray:
        """Return the 0.9 quantile of the noise in each element's band, since a single draw may be small by chance."""
        usual = np.zeros_like(kappa)
        bands = _bands(self.scale)
        for band in np.unique(bands):
            own = bands == band
            usual[own] = np.quantile(kappa[own], 0.9, method="lower")
        return usual

    def error(self, value: np.ndarray) -> tuple[float, str]:
        """Return the largest error of any band of `value` (the whole tensor), and a description of the band."""
        return self.worst(_at(value, self.places) - self.wanted)

    def worst(self, difference: np.ndarray) -> tuple[float, str]:
        """As `error`, given the differences of these elements only."""
        bands = _bands(self.scale)
        found = [(_band_error(difference, self.scale, bands == band), band) for band in np.unique(bands)]
        error, band = max(found, default=(0.0, 0))
        own = bands == band
        if not own.any():
            return 0.0, ""
        size = float(np.median(self.scale[own]))
        count = f"{own.sum()} element" + "s" * int(own.sum() != 1)
        return error, f"in {count} of size {size:.0e}, {UNSEEN} beside one of {self.beside:.0e}"


def small(reference: np.ndarray, gate: float, unit: float = 1.0) -> Small | None:
    """Return the elements of `reference` that relF does not resolve at this gate; None if it resolves all that matter.

    `unit` is the size of ordinary elements.
    """
    b = flat(reference)
    size = np.abs(b)
    whole = norm(b)
    if not np.isfinite(whole):
        finite = size[np.isfinite(size)]
        top = finite.max(initial=0.0)
        with np.errstate(over="ignore"):
            whole = float(min(top * norm(finite / top), np.finfo(np.float64).max)) if top else 0.0
    limit = gate * RESOLVED * whole
    if limit <= FLOOR * unit:
        return None
    places = np.flatnonzero(size < limit)
    if not places.size:
        return None
    beside = float(size[np.isfinite(size)].max())
    return Small(places, b[places], np.maximum(size[places], FLOOR * unit), limit, beside)


SmallOnes = Mapping[Key, Call]
"""Unresolved elements of each call's tensors, by JAX's call keys: `Small` or None in place of each tensor."""


def small_ones(references: Mapping[Key, Call], draws: Sequence[Mapping[Key, Call]], gate: float) -> SmallOnes:
    """Return the unresolved elements of all calls; `draws` are noisy runs of PyTorch with the same keys and layout."""

    def of(wanted: Sequence[np.ndarray], runs: Sequence[Sequence[np.ndarray]]) -> list[Small | None]:
        found = [small(x, gate) for x in wanted]
        return [own and own.known([run[i] for run in runs]) for i, own in enumerate(found)]

    return {
        key: Call(
            of(call.inputs or [], [draw[key].inputs or [] for draw in draws]),
            of(call.outputs, [draw[key].outputs for draw in draws]),
        )
        for key, call in references.items()
    }


def flat(array: np.ndarray) -> np.ndarray:
    """Return the array flattened to real numbers; a complex array yields its real and imaginary parts."""
    return real_numbers(array)[0].reshape(-1)


def _at(array: np.ndarray, places: np.ndarray) -> np.ndarray:
    if np.iscomplexobj(array):
        return flat(array)[places]
    return array.reshape(-1)[places].astype(np.float64)


def _bands(scale: np.ndarray) -> np.ndarray:
    return np.floor(np.log10(scale) / DECADES).astype(int)


def _band_error(difference: np.ndarray, scale: np.ndarray, own: np.ndarray) -> float:
    top = scale[own].max()
    return norm(difference[own] / top) / norm(scale[own] / top)


# Gradients


@dataclasses.dataclass(frozen=True)
class SmallGradient:
    """Unresolved elements of a gradient and JAX's differences there, so that the gradient itself can be freed."""

    small: Small
    difference: np.ndarray

    def error(self, draws: Sequence[np.ndarray]) -> tuple[float, str]:
        """Return the same as `Small.error`; `draws` are this gradient in noisy runs of PyTorch."""
        known = self.small.known(draws)
        return known.worst(self.difference[np.isin(self.small.places, known.places)])


def small_gradients(wanted: Gradients, given: Gradients, gates: Gates) -> dict[str, SmallGradient]:
    """Return, by row name, what relF does not resolve in the gradients of parameters and inputs.

    The unit is the ordinary gradient size: the median of the root mean squares of all nonzero gradients.
    """
    sizes = [norm(g) / math.sqrt(g.size) for g in wanted.params.values() if g.any()]
    unit = float(np.quantile(sizes, 0.5, method="lower")) if sizes else 1.0
    found = {}
    for name, (b, a) in _named(wanted, given).items():
        own = small(b, gates.f64_gradient, unit)
        if own is not None and a.shape == b.shape and np.iscomplexobj(a) == np.iscomplexobj(b):
            found[name] = SmallGradient(own, _at(a, own.places) - own.wanted)
    return found


def _named(*runs: Gradients) -> dict[str, tuple[np.ndarray, ...]]:
    found = {name: tuple(run.params[name] for run in runs) for name in runs[0].params}
    inputs = zip(*(run.inputs for run in runs), strict=True)
    return found | {f"input {i}": tuple(gradients) for i, gradients in enumerate(inputs)}


def with_small_gradients(
    rows: Sequence[Row], suspects: Mapping[str, SmallGradient], draws: Sequence[Gradients]
) -> list[Row]:
    """Return the float64 rows; a passing row whose unresolved elements fail is replaced by a row with their error."""
    noisy = _named(*draws)
    found = []
    for row in rows:
        if row.kind == "gradient" and row.passed and row.name in suspects:
            row = with_error(row, *suspects[row.name].error(noisy[row.name]))
        found.append(row)
    return found


def is_small(row: Row) -> bool:
    """Return whether a failing row reports elements that relF does not resolve."""
    return UNSEEN in row.note


def with_error(row: Row, error: float, note: str) -> Row:
    """Return the row, or if `error` of its small elements exceeds their gate, a row with that error."""
    limit = LOOSER * row.gate
    return row if error <= limit else dataclasses.replace(row, error=error, gate=limit, note=note)
