"""Models that are run by a function of the user."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from parity.carry.copies import as_dtype, torch_copy
from parity.recording.capture import ROOT, torch_calls
from parity.recording.own_calls import jax_called, torch_called
from parity.recording.transformations import jax_calls


class Torch(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Linear(3, 3)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> dict[str, torch.Tensor]:
        return {"y": scale * self.a(x)}

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(x)


class Jax(nnx.Module):
    def __init__(self) -> None:
        self.a = nnx.Linear(3, 3, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array, scale: float = 1.0) -> dict[str, jax.Array]:
        return {"y": scale * self.a(x)}


class Base(nnx.Module):
    def __call__(self, x: jax.Array) -> jax.Array:
        return x + 1


class Derived(Base):
    def __call__(self, x: jax.Array) -> jax.Array:
        return 2 * super().__call__(x)


def twice(model: Any, x: Any, scale: float = 1.0) -> Any:
    return model(x, scale=scale)["y"] + model(x)["y"]


def test_pytorch_is_called_by_the_function() -> None:
    model, x = Torch(), torch.ones(2, 3)
    found = torch_called(model, twice)
    torch.testing.assert_close(found(x, scale=3.0), 4 * model.a(x))
    assert isinstance(model(x), dict), "the model itself is not changed"
    assert type(found).__name__ == "Torch"
    assert found.a is model.a, "the same weights"
    copied = torch_copy(found, torch.float64)
    torch.testing.assert_close(copied(x.double()), 2 * model.a(x).double())


def test_the_call_within_is_no_call_of_its_own() -> None:
    calls = torch_calls(torch_called(Torch(), twice), (torch.ones(2, 3),))
    assert list(calls) == [("a", 0), ("a", 1), ROOT]
    called = jax_called(Jax(), twice)
    assert list(jax_calls(called, (jnp.ones((2, 3)),))) == [("a", 0), ("a", 1), ROOT]


def test_other_methods_and_forward_can_be_called() -> None:
    model, x = Torch(), torch.ones(2, 3)
    torch.testing.assert_close(torch_called(model, lambda m, x: m.features(x))(x), model.a(x))
    torch.testing.assert_close(torch_called(model, lambda m, x: m.forward(x)["y"])(x), model.a(x))


def test_jax_is_called_by_the_function() -> None:
    model, x = Jax(), jnp.ones((2, 3))
    found = jax_called(model, twice)
    np.testing.assert_allclose(found(x, scale=3.0), 4 * model.a(x), rtol=1e-6)
    assert isinstance(model(x), dict)
    copied = as_dtype(found, jnp.float32)
    np.testing.assert_allclose(jax.jit(lambda x: copied(x))(x), 2 * model.a(x), rtol=1e-6)
    graphdef, state = nnx.split(found)
    np.testing.assert_allclose(nnx.merge(graphdef, state)(x), 2 * model.a(x), rtol=1e-6)


def test_a_class_that_calls_its_base() -> None:
    found = jax_called(Derived(), lambda model, x: -model(x))
    assert float(found(jnp.ones(()))) == -4
    assert list(jax_calls(found, (jnp.ones(()),))) == [ROOT]


def test_after_an_error_the_function_is_called_again() -> None:
    def fails(model: Any, x: torch.Tensor) -> torch.Tensor:
        if x.sum() == 0:
            raise RuntimeError("zero")
        return model(x)["y"]

    found = torch_called(Torch(), fails)
    with pytest.raises(RuntimeError, match="zero"):
        found(torch.zeros(2, 3))
    assert isinstance(found(torch.ones(2, 3)), torch.Tensor)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_what_cannot_be_called() -> None:
    with pytest.raises(ValueError, match="torch_call has to be a function of the model and its inputs, not a str"):
        torch_called(Torch(), "forward")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="jax_call has to be a function"):
        jax_called(Jax(), 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"not one of torch\.jit"):
        torch_called(torch.jit.script(torch.nn.Linear(2, 2)), twice)
