"""Every module's own derivative: the wrong one is named, and no other."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from parity import Gates, Row, Rules
from parity.backward import backward_rows
from parity.check import Proof
from parity.report import Cause
from parity.selftest.mutation import Apply, calling
from parity.selftest.pairs import fresh

stop = jax.lax.stop_gradient


pytestmark = pytest.mark.usefixtures("uncompiled")


def rows_of(pair: str, apply: Apply | None = None) -> tuple[list[Row], tuple[Cause, ...]]:
    torch_model, jax_model, inputs = fresh(pair)
    if apply:
        apply(jax_model)
    proof = Proof.of(torch_model, jax_model, inputs, Rules(), Gates())
    sides = proof.torch_side("float64"), proof.jax_side("float64")
    return backward_rows(*sides, proof.arrays, proof.pairing, proof.ledger, proof.gates)


def wrong(pair: str, apply: Apply) -> list[str]:
    return [row.name for row in rows_of(pair, apply)[0] if not row.passed]


@pytest.mark.parametrize("pair", ["convnet", "dropout", "resize"])
def test_right_pairs_pass_in_every_module(pair: str) -> None:
    rows, causes = rows_of(pair)
    assert all(row.passed for row in rows), [row for row in rows if not row.passed]
    assert rows[-1].name == ""
    assert len(rows) > 1
    assert causes == ()
    # The figures are measured, not left out: rounding leaves traces.
    assert any(row.error > 0 for row in rows)


def test_a_cut_inside_a_leaf_names_the_leaf() -> None:
    assert wrong("convnet", calling("act1", lambda self, original, x: stop(original(x)))) == ["act1"]


def test_a_cut_residual_names_the_module_that_adds() -> None:
    def cut(self, original, x):
        x = self.act1(self.norm1(self.conv1(x)))
        x = stop(x) + self.act2(self.norm2(self.conv2(x)))
        return self.head(self.down(x).mean((1, 2)))

    assert wrong("convnet", calling("", cut)) == [""]


def test_a_parameter_that_gets_no_gradient_is_told() -> None:
    def frozen(self, original, x):
        return x @ self.kernel[...] + stop(self.bias[...]).reshape(1, 1, -1)

    rows, causes = rows_of("dropout", calling("fc1", frozen))
    assert [row.name for row in rows if not row.passed] == ["fc1"]
    assert [(cause.module, cause.switch) for cause in causes] == [("fc1", "gradient cut")]
    assert "fc1.bias" in causes[0].description


def test_a_multiple_is_told() -> None:
    _, (cause,) = rows_of("dropout", calling("fc2", lambda self, original, x: 3 * original(x) - 2 * stop(original(x))))
    assert (cause.module, cause.switch) == ("fc2", "gradient scale")
    assert "3 times" in cause.description
    assert np.isfinite(cause.error_before)
