"""Small elements beside huge ones, which relF of the whole tensor cannot see.

Masked logits of -1e9 or finfo.min, or one exploding channel, are nearly all of ||b||; what goes wrong in the ordinary
elements beside them vanishes in relF. So the elements that relF does not resolve are measured once more, against their
own size: grouped into bands of the scale

    S_i = max(|b_i|, kappa_i, floor),    error of a band = sqrt(sum e_i^2 / sum S_i^2)    (gate: 1e-10, `LOOSER`)

kappa_i is the measured noise of the element in units of 2^-24: how far PyTorch's float32 run, and a float64 run on
inputs shaken by one rounding of float32, stray from the float64 oracle there. It tells what large terms an element
is the small rest of, so cancellation is no error. Why these numbers: docs, How equality is judged.
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
"""The gate of a band over relF's own: 1e-10 where that is 1e-13. Rounding is 1e-16 of S, a wrong element 1e-5 of it."""

RESOLVED = 1e8
"""Where relF's gate is g, elements of at least g * RESOLVED * ||b|| are left to it: it sees 1e-8 of one of them."""

FLOOR = 1e-3
"""In units of what is ordinary (1 in activations): so a band allows 1e-13 at least, as relF does in a tensor of size 1.

Functions bring terms of size 1 with them (1 + exp(x), 1 - cos(x)), whose rounding no smaller element can be above.
"""

DECADES = 3
"""Width of a band."""

ROUNDING = 2.0**-24

UNSEEN = "which relF does not see"


@dataclasses.dataclass(frozen=True)
class Small:
    """The elements of one tensor that relF does not resolve.

    Attributes:
        places: where they are among the tensor's real numbers, flat.
        wanted: the reference there.
        scale: S there.
        limit: elements from this size on are left to relF.
        beside: the largest finite element of the tensor.
    """

    places: np.ndarray
    wanted: np.ndarray
    scale: np.ndarray
    limit: float
    beside: float

    def known(self, draws: Sequence[np.ndarray]) -> Small:
        """With what these runs of PyTorch (of the whole tensor) say of the noise of each element."""
        return self.noisy([_at(draw, self.places) for draw in draws])

    def noisy(self, draws: Sequence[np.ndarray]) -> Small:
        """The same, from draws of these elements alone; those whose noise relF resolves are dropped."""
        scale = self.scale
        with np.errstate(over="ignore", invalid="ignore"):
            for draw in draws:
                kappa = np.nan_to_num(np.abs(draw - self.wanted) / ROUNDING, nan=np.inf, posinf=np.inf)
                scale = np.maximum(scale, np.maximum(kappa, self._usual(kappa)))
        keep = scale < self.limit
        return Small(self.places[keep], self.wanted[keep], scale[keep], self.limit, self.beside)

    def _usual(self, kappa: np.ndarray) -> np.ndarray:
        """The noise that a tenth of the elements of the same size exceed: one draw is small by chance now and then."""
        usual = np.zeros_like(kappa)
        bands = _bands(self.scale)
        for band in np.unique(bands):
            own = bands == band
            usual[own] = np.quantile(kappa[own], 0.9, method="lower")
        return usual

    def error(self, value: np.ndarray) -> tuple[float, str]:
        """The largest error of a band of `value` (the whole tensor), and where it is, in words."""
        return self.worst(_at(value, self.places) - self.wanted)

    def worst(self, difference: np.ndarray) -> tuple[float, str]:
        """The same, given the differences of these elements alone."""
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
    """The elements of `reference` that relF does not resolve at this gate; None if it resolves all that counts.

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
"""By JAX's names, the unresolved elements of the tensors of each call: `Small` or None in place of tensors."""


def small_ones(references: Mapping[Key, Call], draws: Sequence[Mapping[Key, Call]], gate: float) -> SmallOnes:
    """Those of all calls; `draws` are noisy runs of PyTorch (see above), in the same names and layout."""

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
    """All real numbers of the array: real and imaginary parts, if it is complex, one beside the other."""
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
    """The unresolved elements of a gradient, and JAX's differences there; the gradient itself can be let go."""

    small: Small
    difference: np.ndarray

    def error(self, draws: Sequence[np.ndarray]) -> tuple[float, str]:
        """As `Small.error`; `draws` are this gradient in noisy runs of PyTorch."""
        known = self.small.known(draws)
        return known.worst(self.difference[np.isin(self.small.places, known.places)])


def small_gradients(wanted: Gradients, given: Gradients, gates: Gates) -> dict[str, SmallGradient]:
    """By the rows' names, what relF does not resolve in the gradients of parameters and inputs.

    The unit is the size of an ordinary gradient: the median of the root mean squares of those that are not zero.
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
    """The float64 rows; where one passes and the elements that it does not resolve fail, it is theirs."""
    noisy = _named(*draws)
    found = []
    for row in rows:
        if row.kind == "gradient" and row.passed and row.name in suspects:
            row = with_error(row, *suspects[row.name].error(noisy[row.name]))
        found.append(row)
    return found


def is_small(row: Row) -> bool:
    """Whether a failing row is that of elements which relF does not resolve."""
    return UNSEEN in row.note


def with_error(row: Row, error: float, note: str) -> Row:
    """The row, or where this error of its small elements is beyond their gate, theirs."""
    limit = LOOSER * row.gate
    return row if error <= limit else dataclasses.replace(row, error=error, gate=limit, note=note)
