"""Which rows float32's gate excuses where tables differ, and which never."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from parity.measure.gates import Gates, Row
from parity.pairing.match_calls import Pair, Pairing
from parity.precision.by_design import Design
from parity.precision.casts import Cast
from parity.proof.table_gates import TableGates, own_casts

PATHS = ("before", "rope.inner", "rope", "norm", "")


def _pairing(design: Design) -> Pairing:
    pairs = tuple(Pair((path, 0), (path, 0), torch.nn.Module(), (0,), (None,), (None,)) for path in PATHS)
    return Pairing(pairs, (), {}, design=dataclasses.replace(design, partners={path: path for path in PATHS}))


TABLE = ("rope", np.cos(np.arange(9.0)).astype(np.float32))


def _row(name: str, kind: str = "layer", mode: str = "forced", error: float = 1e-7, note: str = "") -> Row:
    return Row(name, kind, mode, "float64", error, 1e-13, note=note)


def _judged(*rows: Row, table: bool = True) -> list[bool]:
    gates = TableGates(_pairing(Design(our_tables=(TABLE,) if table else ())), Gates())
    return [row.passed for row in gates.judged(rows)]


def test_the_modules_own_rows_and_what_is_behind_it() -> None:
    rows = [_row("rope"), _row("rope.inner", "calls"), _row("norm", mode="free"), _row("", "output", "free")]
    assert _judged(*rows, _row("loss", "loss", "free"), _row("norm.weight", "gradient", "free")) == [True] * 6
    assert _judged(*rows, table=False) == [False] * 4


def test_nothing_else_is_excused() -> None:
    rows = [_row("rope"), _row("norm"), _row("norm", "calls"), _row("before", mode="free"), _row("norm", "derivative")]
    assert _judged(*rows) == [True, False, False, False, False]


@pytest.mark.parametrize("row", [_row("rope", error=1.1e-5), _row("rope", note="float32 in a float64 run")])
def test_larger_errors_and_other_failures_are_not(row: Row) -> None:
    assert _judged(row, _row("norm", mode="free")) == [False, False]


def test_free_rows_and_gradients_are_held_to_float64s_gate_while_the_tables_agree() -> None:
    rows = [_row("rope", error=1e-16), _row("norm", mode="free"), _row("norm.weight", "gradient", "free")]
    assert _judged(*rows) == [True, False, False]


def test_the_note_names_the_module() -> None:
    gates = TableGates(_pairing(Design(our_tables=(TABLE,))), Gates())
    assert gates.notes() == ()
    gates.judged([_row("rope")])
    (note,) = gates.notes()
    assert "in: rope;" in note


def test_a_ports_own_cast_is_a_row_only_where_something_fails() -> None:
    pairing = _pairing(Design(theirs=(Cast("norm", "float32", "port.py:7"),)))
    (row,) = own_casts([_row("norm")], pairing)
    assert (row.name, row.note) == ("norm", "JAX alone casts to float32 at port.py:7")
    assert own_casts([_row("norm", error=0.0), _row("before")], pairing) == []
