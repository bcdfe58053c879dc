"""Tensors that are zero but for rounding pass, whatever rounding leaves; anything above rounding fails."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
import torch
from flax import nnx

import parity
from parity.measure.cancellation import LIMIT, judged
from parity.measure.gates import Gates, Row
from tests.support.parity.pairs import images

X = images(5, 4)


class TorchCancels(torch.nn.Module):
    """GroupNorm with a single number in each group: what it normalises is zero, its fresh bias too."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.head = torch.nn.Linear(4, 6), torch.nn.GroupNorm(6, 6), torch.nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.linear(x)))


class Cancels(nnx.Module):
    def __init__(self, added: float = 0.0) -> None:
        rngs = nnx.Rngs(0)
        self.linear, self.head = nnx.Linear(4, 6, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)
        self.norm = Norm(added, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.norm(self.linear(x)))


class Norm(nnx.GroupNorm):
    def __init__(self, added: float, rngs: nnx.Rngs) -> None:
        super().__init__(6, num_groups=6, epsilon=1e-5, rngs=rngs)
        self.added = added

    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        return super().__call__(x) + self.added


def checked(added: float = 0.0, level: str = "gradients") -> parity.Report:
    torch.manual_seed(0)
    source, port = TorchCancels(), Cancels(added)
    parity.torch_to_jax(source, port)
    return parity.check(source, port, X, level=level)


def test_rounding_on_one_side_and_zeros_on_the_other_are_equal_and_said() -> None:
    report = checked()
    assert report.passed, report
    assert any(note.startswith("not verified, since zero up to rounding on both sides: norm") for note in report.notes)


@pytest.mark.parametrize("added", [1e-8, 1e-10, -1e-11])
def test_more_than_rounding_fails(added: float) -> None:
    report = checked(added, level="forward")
    assert not report.passed
    assert report.first_divergence == "norm"


ROW = Row("norm", "layer", "forced", "float64", 1.0, 1e-13)
SINGLE = Row("norm", "layer", "forced", "float32", 1.0, 3e7, torch_error=1e7)


def test_the_gate_follows_the_float32_run() -> None:
    found = judged([ROW, SINGLE])
    assert found.rows[0].gate == LIMIT * 1e7
    assert (found.zero, found.small) == (["norm"], [])


def test_rounding_that_fits_into_float32_is_no_leak() -> None:
    leak = Row("norm", "leak", "free", "float64", np.inf, 0.0, note="only float32 numbers")
    other = dataclasses.replace(leak, name="head")
    assert judged([ROW, SINGLE, leak, other]).rows[2:] == [other]


@pytest.mark.parametrize(
    ("row", "single"),
    [
        (ROW, dataclasses.replace(SINGLE, torch_error=1.0)),  # a switch that falls otherwise in float32
        (ROW, dataclasses.replace(SINGLE, mode="free")),
        (ROW, dataclasses.replace(SINGLE, torch_error=np.inf)),
        (dataclasses.replace(ROW, error=2.0), SINGLE),  # larger than that rounding
        (dataclasses.replace(ROW, note="not finite on one side only"), SINGLE),
    ],
)
def test_what_is_no_rounding_keeps_its_gate(row: Row, single: Row) -> None:
    found = judged([row, single])
    assert (found.rows[0], found.zero, found.small) == (row, [], [])


# ---- what is left when large terms cancel ----

REST = Row("input 0", "gradient", "free", "float64", 3e-11, 1e-12)
REST32 = Row("input 0", "gradient", "free", "float32", 6e-3, 4e-2, torch_error=1e-2)


def test_a_small_rest_is_held_to_rounding_of_its_terms() -> None:
    found = judged([REST, REST32])
    assert found.rows[0].gate == LIMIT * 1e-2
    assert (found.zero, found.small) == ([], ["input 0"])
    assert not judged([dataclasses.replace(REST, error=2e-9), REST32]).rows[0].passed
    assert not judged([REST, dataclasses.replace(REST32, torch_error=1e-7)]).rows[0].passed  # no large terms there


class Pair(torch.nn.Module):
    """LayerNorm over two numbers: its derivative is eps / variance of the terms that cancel in it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = torch.nn.LayerNorm(2, eps=1e-5), torch.nn.Linear(2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(x))


class FlaxPair(nnx.Module):
    def __init__(self, factor: float = 1.0) -> None:
        rngs = nnx.Rngs(0)
        self.norm = nnx.LayerNorm(2, epsilon=1e-5, use_fast_variance=False, rngs=rngs)
        self.head, self.factor = nnx.Linear(2, 3, rngs=rngs), factor

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.norm(x)
        return self.head(jax.lax.stop_gradient(y) + self.factor * (y - jax.lax.stop_gradient(y)))


def report_of(factor: float) -> parity.Report:
    torch.manual_seed(0)
    source, port = Pair(), FlaxPair(factor)
    parity.torch_to_jax(source, port)
    x = np.random.RandomState(0).standard_normal((1, 2))
    return parity.check(source, port, x)


def test_the_derivative_of_a_norm_of_two_numbers() -> None:
    report = report_of(1.0)
    assert report.passed, report
    said = [note for note in report.notes if note.startswith("large terms cancel")]
    assert any("input 0" in note for note in said)
    looser = [row for row in report.rows if row.kind == "derivative" and row.gate > Gates().f64_gradient]
    assert all(any(row.name in note for note in said) for row in looser)
    assert not report_of(1 + 1e-5).passed


# ---- gradients of float32 ----

EXACT = Row("w", "gradient", "train", "float64", 5e-15, 1e-12)
SHORT = Row("w", "gradient", "train", "float32", 1e-5, 3e-6, torch_error=8e-7)


def test_a_float32_gradient_may_err_as_its_float64_run_does() -> None:
    assert judged([EXACT, SHORT]).rows[1].passed
    for rows in (
        [dataclasses.replace(EXACT, error=1e-17), SHORT],  # it loses more digits than rounding costs
        [dataclasses.replace(EXACT, error=1e-9), SHORT],  # float64 fails
        [EXACT, dataclasses.replace(SHORT, torch_error=1e-8)],  # PyTorch does much better
        [dataclasses.replace(EXACT, kind="layer"), dataclasses.replace(SHORT, kind="layer")],
    ):
        assert judged(rows).rows[1] == rows[1]
