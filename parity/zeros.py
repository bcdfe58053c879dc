"""Tensors that are zero but for rounding, in which relF compares noise with noise.

GroupNorm over a single number returns its bias; with a bias of 0 one framework returns exact zeros, the other
x * s - x * s, computed with different roundings: 1e-14 where x * s is 100. relF of such a pair is 1. The float32 run
shows what the tensor is: the same terms leave 2^29 times as much there. So a float64 row that misses its gate passes if

    err32 >= 1 / LIMIT    and    error <= LIMIT * err32,    LIMIT = 64 * 2^-53 / 2^-24 = 2^-23

where err32 is the relF of PyTorch's float32 run to its float64 run. The first says that the tensor itself is no larger
than 64 float64 roundings of the terms that cancel in it (a tensor that float32 resolves at all has err32 < 1); the
second that JAX's is no larger either. That such numbers happen to fit into float32 is then no leak.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from parity.compare import Row

LIMIT = 2.0**-23


def judged(rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """The rows, those of tensors that are zero but for rounding with the gate above, and the names of these tensors."""
    errors = {_place(row): row.torch_error for row in rows if row.precision == "float32" and row.torch_error}
    found, names = [], []
    for row in rows:
        gate = LIMIT * (errors.get(_place(row)) or 0.0)
        if row.precision == "float64" and not row.passed and not row.note and gate >= 1 and math.isfinite(gate):
            looser = dataclasses.replace(row, gate=gate)
            if looser.passed:
                names.append(row.name)
                row = looser
        found.append(row)
    return [row for row in found if row.kind != "leak" or row.name not in names], names


def _place(row: Row) -> tuple[str, str, str]:
    return row.name, row.kind, row.mode
