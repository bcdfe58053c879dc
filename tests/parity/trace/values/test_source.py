"""Lines of the model's code, not of a library, with their callers."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from parity.runs.torch_side import TorchSide
from parity.trace.values.jax_values import Step, run
from parity.trace.values.source import calls, jax_line, torch_line
from parity.trace.values.torch_operations import trace_torch


def inner(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x)


def outer(x: jax.Array) -> jax.Array:
    return inner(x) + 1


def here(function: object, below: int) -> str:
    """File and line of the line `below` the first of a function."""
    return f"test_source.py:{inspect.getsourcelines(function)[1] + below}"


def lines(function: Callable[[jax.Array], jax.Array]) -> dict[str, str]:
    """Return the line of the last equation of every kind."""
    seen: list[Step] = []
    x = np.ones((2, 3), np.float32)
    run(jax.make_jaxpr(function)(x), [x], lambda step: seen.append(step))
    return {step.eqn.primitive.name: jax_line(step.scope) for step in seen}


@pytest.mark.parametrize("wrap", [lambda f: f, jax.vmap], ids=["plain", "vmap"])
def test_a_line_of_jax_and_its_callers(wrap):
    found = lines(wrap(outer))
    assert found["tanh"].startswith(f"{here(inner, 1)} (called at {here(outer, 1)}")
    assert found["add"].startswith((here(outer, 1), here(inner, 1)))


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint])
def test_what_is_compiled_by_itself_has_a_line_of_the_model(wrap):
    found = lines(lambda x: wrap(outer)(x))
    assert found["tanh"].startswith(f"{here(inner, 1)} (called at {here(outer, 1)}, test_source.py:")


def test_a_scan_shows_the_line_in_its_body():
    seen: list[Step] = []
    x = np.ones((2, 3), np.float32)
    body = jax.make_jaxpr(lambda x: jax.lax.scan(lambda c, row: (c, jnp.sin(row)), 0.0, x))(x)
    run(body, [x], lambda step: seen.append(step))
    assert jax_line(seen[0].scope).startswith("test_source.py:")


class Model(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.softmax(x, -1)


def test_a_line_of_pytorch():
    found = trace_torch(TorchSide.of(Model(), "float64"), [np.random.RandomState(0).standard_normal((2, 3))])
    assert [operation.where for operation in found.operations] == [here(Model.forward, 1)]


def test_a_module_of_a_library_shows_the_line_that_calls_the_model():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4))
    found = trace_torch(TorchSide.of(model, "float64"), [np.random.RandomState(0).standard_normal((2, 3))])
    assert found.operations[0].where.startswith("test_source.py:")


def test_the_line_that_runs():
    assert torch_line() == here(test_the_line_that_runs, 1)


def test_the_functions_that_run_when_an_equation_is_traced():
    def inner(x: jax.Array) -> jax.Array:
        return jnp.tanh(x)

    def outer(x: jax.Array) -> jax.Array:
        return jnp.exp(jax.jit(inner)(x))

    seen: list[Step] = []
    run(jax.make_jaxpr(outer)(jnp.ones(3)), [jnp.ones(3)], seen.append)
    names = {step.eqn.primitive.name: [name for _, name in calls(step.scope)] for step in seen}
    assert names["exp"][-1].endswith("outer")
    assert [name.rpartition(".")[2] for name in names["tanh"][-2:]] == ["outer", "inner"]
    assert names["tanh"][: len(names["exp"])] == names["exp"]
