"""Tensors of which little or nothing is left when large terms cancel: relF compares rounding with rounding there.

The derivative of LayerNorm over two numbers is what is left of terms 10^5 times as large; GroupNorm over a single
number returns its bias, and where that is 0 one framework returns exact zeros, the other x * s - x * s, computed with
different roundings: 1e-14 where x * s is 100. The float32 run shows how large the terms are: they leave 2^29 times as
much of rounding there. So a float64 row that misses its gate passes if

    error <= LIMIT * err32,    LIMIT = 64 * 2^-53 / 2^-24 = 2^-23

where err32 is the relF of PyTorch's float32 run to its float64 run, and 64 leaves room for chance: the error of a
single number is small now and then. An ordinary err32, 1e-7, leaves the gate of 1e-13 as it is; a mistake that changes
more than 64 roundings of the terms fails. With LIMIT * err32 >= 1 the tensor itself is no larger than that rounding: it
is zero. That such numbers happen to fit into float32 is then no leak.

The other way round, a gradient of float32 that misses its gate passes if its float64 row passed and

    error <= 64 * 2^29 * err64    and    error <= 64 * err32

The first says that it is the rounding of the same program; the second that PyTorch's own run is not much better. JAX
derives what PyTorch has written by hand (softmax, normalisation), and a gradient that passed through a handful of
numbers errs as the unluckiest of them does. Algorithms that lose digits, such as the variance by E[x^2] - E[x]^2, show
in the rows of the layers, which keep their gates.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from parity.measure.gates import Row

LIMIT = 2.0**-23
CHANCE, DIGITS = 64.0, 2.0**29
GRADIENTS = ("gradient", "activation gradient")


@dataclasses.dataclass(frozen=True)
class Judged:
    """Rows with the gate above where it counts, and the names of these tensors: zero, or the small rest of terms."""

    rows: list[Row]
    zero: list[str]
    small: list[str]


def judged(rows: Sequence[Row]) -> Judged:
    """The rows, those of tensors that are mostly rounding with the gate above."""
    errors = {_place(row): row.torch_error for row in rows if row.precision == "float32" and row.torch_error}
    found = Judged([], [], [])
    for row in rows:
        looser = with_noise(row, errors.get(_place(row)) or 0.0)
        if looser is not row:
            (found.zero if looser.gate >= 1 else found.small).append(row.name)
        found.rows.append(looser)
    double = {_place(row): row.error for row in found.rows if row.precision == "float64" and row.passed}
    found.rows[:] = [_same_rounding(row, double.get(_place(row), 0.0)) for row in found.rows]
    kept = [row for row in found.rows if row.kind != "leak" or row.name not in found.zero]
    return dataclasses.replace(found, rows=kept)


def with_noise(row: Row, error32: float) -> Row:
    """A row of float64 that misses its gate and passes the one above, with that; any other as it is."""
    gate = LIMIT * error32
    if row.precision == "float64" and not row.passed and not row.note and row.error <= gate < math.inf:
        return dataclasses.replace(row, gate=gate)
    return row


def _same_rounding(row: Row, error64: float) -> Row:
    """A gradient of float32 that misses its gate and passes by its float64 row, with that gate."""
    if row.precision != "float32" or row.passed or row.note or row.kind not in GRADIENTS:
        return row
    gate = CHANCE * min(DIGITS * error64, row.torch_error or 0.0)
    return dataclasses.replace(row, gate=gate) if row.error <= gate < math.inf else row


def _place(row: Row) -> tuple[str, str, str]:
    return row.name, row.kind, row.mode
