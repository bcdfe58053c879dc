"""What passes without having been verified is said."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import parity
from parity.judgement.unverified import unverified_gradients
from parity.runs.torch_side import Gradients
from tests.support.parity.pairs import images

X = images(4, 6)


class TorchGated(torch.nn.Module):
    """A branch behind a gate of zero, and logarithms of negative numbers."""

    def __init__(self, how: str = "") -> None:
        super().__init__()
        self.branch = torch.nn.Linear(6, 6)
        self.gate = torch.nn.Linear(6, 6)
        torch.nn.init.zeros_(self.gate.weight)
        torch.nn.init.zeros_(self.gate.bias)
        self.how = how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.gate(self.branch(x))
        if self.how == "zero":
            return y
        y = x + y
        if self.how == "some NaN":
            return y.log()
        return (-y.abs() - 1).log() if self.how == "NaN" else y


class Gated(nnx.Module):
    def __init__(self, how: str = "", tripled: bool = False) -> None:
        rngs = nnx.Rngs(0)
        self.branch, self.gate = (nnx.Linear(6, 6, rngs=rngs) for _ in range(2))
        self.how, self.tripled = how, tripled

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.gate(self.branch(x))
        if self.how == "zero":
            return y
        y = x + y
        if self.how == "some NaN":
            return jnp.log(y) * (3 if self.tripled else 1)
        return jnp.log(-jnp.abs(y) - 1) if self.how == "NaN" else y


def checked(how: str, tripled: bool = False, level: str = "forward") -> parity.Report:
    source, port = TorchGated(how), Gated(how, tripled)
    parity.torch_to_jax(source, port)
    return parity.check(source, port, X, level=level)


def test_a_module_of_zeros_and_gradients_of_zero_are_named():
    report = checked("", level="gradients")
    assert report.passed, report.brief()
    assert report.notes == (
        "not verified, since zero everywhere on these inputs: gate",
        "gradients not verified, since zero everywhere on both sides: branch.weight, branch.bias",
    )


def test_an_output_of_zeros_or_nan_is_no_pass():
    zero = checked("zero")
    assert {row.note for row in zero.failures} == {"nothing to compare: zero everywhere on both sides"}
    nan = checked("NaN")
    assert {row.note for row in nan.failures} == {"nothing to compare: no number is finite on either side"}


def test_where_both_have_nan_the_rest_is_compared():
    report = checked("some NaN")
    assert report.passed
    count = int((X < 0).sum())
    assert (
        f"NaN in PyTorch, left out where JAX has it in the same places (how many): the output ({count})" in report.notes
    )
    assert not checked("some NaN", tripled=True).passed


def test_many_names_are_counted():
    zero = Gradients(1.0, {f"w{i}": np.zeros(2) for i in range(7)} | {"v": np.ones(2)}, [np.zeros(1)], {})
    assert unverified_gradients(zero, zero) == [
        "gradients not verified, since zero everywhere on both sides: w0, w1, w2, w3, w4 and 3 more"
    ]
    other = Gradients(1.0, {name: np.ones(2) for name in zero.params}, [np.ones(1)], {})
    assert unverified_gradients(zero, other) == []
