"""Which of a model's outputs differ, by their names."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from parity.measure.gates import Row, rel_f
from parity.pairing.match_calls import Pair


def with_outputs(row: Row, pair: Pair, value: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> Row:
    """Return a failing row of several outputs with a note that names those that differ, and those that do not."""
    if row.passed or row.note or len(pair.output_names) != len(value):
        return row
    differ: dict[bool, list[str]] = {True: [], False: []}
    for name, a, b in zip(pair.output_names, value, reference, strict=True):
        error = rel_f(a, b)
        differ[error > row.gate].append(f"{name} (relF {error:.1e})" if error > row.gate else name)
    equal = f"; equal: {', '.join(differ[False])}" if differ[False] else ""
    return dataclasses.replace(row, note=f"different: {', '.join(differ[True])}{equal}")
