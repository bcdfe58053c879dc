"""Gates for tensors that result from cancellation of large terms, where relF compares rounding errors only.

The derivative of LayerNorm over two numbers is the remainder of terms 10^5 times as large; GroupNorm over a single
number returns its bias, and where that is 0 one framework returns exact zeros, the other x * s - x * s, computed with
different roundings: 1e-14 where x * s is 100. The float32 run shows how large the terms are: there they leave a
rounding error 2^29 times as large. So a float64 row that misses its gate passes if

    error <= LIMIT * err32,    LIMIT = 64 * 2^-53 / 2^-24 = 2^-23

where err32 is the relF between PyTorch's float32 and float64 runs, and 64 is a margin for chance: the error of a
single number is sometimes small. An ordinary err32 of 1e-7 leaves the gate of 1e-13 unchanged; an error that exceeds
64 roundings of the terms fails. With LIMIT * err32 >= 1 the tensor itself is no larger than that rounding error and
counts as zero. If its values happen to be exact in float32, this is not a leak.

Conversely, a float32 gradient that misses its gate passes if its float64 row passed and

    error <= 64 * 2^29 * err64    and    error <= 64 * err32

The first condition means that it is the rounding error of the same program; the second that PyTorch's own run is not
much better. JAX differentiates automatically what PyTorch implements by hand (softmax, normalization), and the error
of a gradient that passes through a few numbers is that of the worst of them. Algorithms that lose digits, such as the
variance by E[x^2] - E[x]^2, show in the rows of the layers, whose gates are unchanged.
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
    """Rows with the gate above where it applies, and the names of these tensors: zero, or a small remainder."""

    rows: list[Row]
    zero: list[str]
    small: list[str]


def judged(rows: Sequence[Row]) -> Judged:
    """Apply the gate above to the rows of tensors that are mostly rounding errors."""
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
    """Replace the gate of a float64 row that misses its gate and passes the one above; return other rows unchanged."""
    gate = LIMIT * error32
    if row.precision == "float64" and not row.passed and not row.note and row.error <= gate < math.inf:
        return dataclasses.replace(row, gate=gate)
    return row


def _same_rounding(row: Row, error64: float) -> Row:
    """Replace the gate of a float32 gradient that misses its gate and passes by its float64 row."""
    if row.precision != "float32" or row.passed or row.note or row.kind not in GRADIENTS:
        return row
    gate = CHANCE * min(DIGITS * error64, row.torch_error or 0.0)
    return dataclasses.replace(row, gate=gate) if row.error <= gate < math.inf else row


def _place(row: Row) -> tuple[str, str, str]:
    return row.name, row.kind, row.mode
