"""PyTorch run wide: whatever asks for float32 gets float64, and is noted with its module and line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from parity.precision.wide_torch import own_tables, wide

X = torch.randn(2, 6, 8, dtype=torch.float64)

CASTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "to": lambda x: x.to(torch.float32),
    "to, by keyword": lambda x: x.to(dtype=torch.float32, copy=True),
    "to a device and a type": lambda x: x.to("cpu", torch.float32),
    "float": lambda x: x.float(),
    "half": lambda x: x.half(),
    "bfloat16": lambda x: x.bfloat16(),
    "type": lambda x: x.type(torch.float32),
    "type, by name": lambda x: x.type("torch.FloatTensor"),
    "type, by class": lambda x: x.type(torch.FloatTensor),  # type: ignore[call-overload]
    "softmax": lambda x: F.softmax(x, -1, dtype=torch.float32),
    "softmax of a tensor": lambda x: x.softmax(-1, dtype=torch.float32),
    "log_softmax": lambda x: torch.log_softmax(x, -1, torch.float32),
    "sum": lambda x: x.sum(-1, dtype=torch.float32),
    "mean": lambda x: torch.mean(x, -1, dtype=torch.float32),
    "cumsum": lambda x: x.cumsum(-1, dtype=torch.float32),
}

MADE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "arange": lambda x: torch.arange(6, dtype=torch.float32),
    "zeros": lambda x: torch.zeros(3, dtype=torch.float32),
    "new_zeros": lambda x: x.new_zeros(3, dtype=torch.float32),
    "ones_like": lambda x: torch.ones_like(x, dtype=torch.float32),
    "tensor": lambda x: torch.tensor([0.1], dtype=torch.float32),
    "integers": lambda x: torch.arange(6).float(),
    "a quotient of integers": lambda x: torch.arange(6) / 7,
    "the default type": lambda x: torch.linspace(0, 1, 5),
}


class Casting(torch.nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x)


@pytest.mark.parametrize("name", CASTS | MADE)
def test_whatever_asks_for_less_gets_float64(name: str) -> None:
    model = torch.nn.Sequential(Casting((CASTS | MADE)[name]))
    with wide("float64", model) as asked:
        found = model(X)
    assert found.dtype == torch.float64
    (cast,) = asked.casts
    assert (cast.module, cast.made) == ("0", name in MADE)
    assert cast.where.startswith("test_wide_torch.py:")
    assert cast.format == {"half": "float16", "bfloat16": "bfloat16"}.get(name, "float32")


def test_nothing_is_noted_where_nothing_is_asked_for() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8), Casting(lambda x: x.to(x.dtype))).double()
    with wide("float64", model) as asked:
        model(X)
    assert asked.casts == []
    assert not asked.tables


def test_bits_and_integers_are_left_alone() -> None:
    with wide("float64"):
        assert X.to(torch.int32).dtype == torch.int32
        assert torch.zeros(2, dtype=torch.int32).view(torch.float32).dtype == torch.float32


def test_a_table_is_widened_where_it_is_used_and_noted() -> None:
    table = torch.rand(8)
    model = torch.nn.Sequential(Casting(lambda x: x * table[:8]))
    with wide("float64", model) as asked:
        assert model(X).dtype == torch.float64
    assert [path for path, _ in asked.tables] == ["0"]


def test_gradients_are_those_of_float64() -> None:
    x = X.clone().requires_grad_()
    with wide("float64"):
        F.softmax(x.float(), -1, dtype=torch.float32).square().sum().backward()
    y = X.clone().requires_grad_()
    F.softmax(y, -1).square().sum().backward()
    assert x.grad is not None
    assert y.grad is not None
    assert torch.equal(x.grad, y.grad)


def test_a_float32_run_widens_bfloat16_alone() -> None:
    x = X.float()
    with wide("float32"):
        assert x.bfloat16().dtype == torch.float32
        assert x.to(torch.float64).dtype == torch.float64


def test_the_default_type_is_given_back() -> None:
    with pytest.raises(RuntimeError), wide("float64"):
        torch.zeros(2) @ torch.zeros(3)
    assert torch.get_default_dtype() == torch.float32


def test_buffers_that_no_checkpoint_holds_are_tables() -> None:
    model = torch.nn.Module()
    table = torch.rand(3)
    model.register_buffer("a", table, persistent=False)
    model.register_buffer("b", torch.rand(3))
    model.register_buffer("c", torch.arange(3), persistent=False)
    ((path, numbers),) = own_tables(model, "float64")
    assert path == ""
    np.testing.assert_array_equal(numbers, table.double().numpy())


def test_the_derivative_of_hardsigmoid_is_whole():
    x = torch.linspace(-4, 4, 33, dtype=torch.float64, requires_grad=True)
    with wide("float64"):
        y = torch.nn.functional.hardsigmoid(x)
    y.sum().backward()
    assert x.grad is not None
    inside = x.abs() < 3
    assert (x.grad[inside] - 1 / 6).abs().max() < 1e-16
    assert torch.equal(y, torch.nn.functional.hardsigmoid(x))
