"""Who is at fault for a wrong value that a right operation is given: the module that made it, or the caller."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from parity.measure.gates import Row
from parity.trace.stage import Traced
from tests.support.parity.traced import DIM, Sides, linear, normed, tokens, zero_linear

PARAMS = {
    "norm": {"scale": np.zeros(DIM), "b": np.zeros(DIM)},
    "inner": {"fc1": zero_linear(DIM, 2 * DIM), "fc2": zero_linear(2 * DIM, DIM)},
}


class Inner(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = torch.nn.Linear(DIM, 2 * DIM), torch.nn.Linear(2 * DIM, DIM)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(torch.tanh(self.fc1(x)))


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner = torch.nn.LayerNorm(DIM), Inner()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(self.norm(x))


def same(x: jax.Array) -> jax.Array:
    return x


def port(in_norm: Callable[..., Any] = same, between: Callable[..., Any] = same) -> Callable[..., jax.Array]:
    """Return the model, with a step at the end of the norm, or between the norm and what takes its output."""

    def norm(p: Any, x: jax.Array) -> jax.Array:
        return in_norm(normed(p, x, ""))

    def inner(p: Any, x: jax.Array) -> jax.Array:
        return linear(p["fc2"], jnp.tanh(linear(p["fc1"], x)))

    def model(p: Any, x: jax.Array) -> jax.Array:
        return x + inner(p["inner"], between(norm(p["norm"], x)))

    return model


def found(function: Callable[..., jax.Array]) -> tuple[Row, Traced]:
    traced = Sides.of(Model(), function, PARAMS, tokens()).stage()
    (row,) = [row for row in traced.rows if not row.passed]
    return row, traced


def scaled(x: jax.Array) -> jax.Array:
    return x * 1.5


def flipped(x: jax.Array) -> jax.Array:
    return x[..., ::-1]


@pytest.mark.parametrize(("step", "switch"), [(scaled, "scale"), (flipped, "axis flipped")])
def test_a_step_at_the_end_of_a_module_is_its_own(step: Callable[..., Any], switch: str):
    row, traced = found(port(in_norm=step))
    assert (row.name, row.kind) == ("norm", "layer")
    assert [(cause.module, cause.switch) for cause in traced.causes] == [("norm", switch)]


@pytest.mark.parametrize("step", [scaled, flipped])
def test_a_step_between_two_modules_is_the_callers(step: Callable[..., Any]):
    """The outermost module that takes the value is named: its caller computed it."""
    row, _ = found(port(between=step))
    assert (row.name, row.kind) == ("inner", "calls")


def test_a_module_that_is_given_another_right_value_is_not_at_fault():
    def model(p: Any, x: jax.Array) -> jax.Array:
        y = linear(p["inner"]["fc1"], normed(p["norm"], x, ""))
        return x + linear(p["inner"]["fc2"], y) + 0 * jnp.tanh(y).sum()

    row, _ = found(model)
    assert (row.name, row.kind) == ("inner.fc2", "calls")
    assert "another value is given to addmm" in row.note


def test_a_value_that_is_right_elsewhere_is_wrong_where_it_is_used():
    """The sum takes another value than x, which the norm is given: the model itself is wrong, not its caller."""

    def model(p: Any, x: jax.Array) -> jax.Array:
        y = normed(p["norm"], x, "")
        return y + linear(p["inner"]["fc2"], jnp.tanh(linear(p["inner"]["fc1"], y)))

    row, traced = found(model)
    assert (row.name, row.kind) == ("", "output")
    assert [(cause.module, cause.switch) for cause in traced.causes] == [("the model", "residual")]
