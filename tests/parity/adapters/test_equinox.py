"""Equinox models: one example or a batch, keys, state, and wrong arguments."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import parity
from parity import LeafRule, Rules
from tests.support.parity.pairs import images

KEY = jax.random.key(0)


class Net(eqx.Module):
    fc1: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    drop: eqx.nn.Dropout
    blocks: list[eqx.nn.Linear]
    width: int = eqx.field(static=True)

    def __init__(self) -> None:
        self.fc1, self.norm, self.drop = eqx.nn.Linear(4, 8, key=KEY), eqx.nn.LayerNorm(8), eqx.nn.Dropout(0.5)
        self.blocks, self.width = [eqx.nn.Linear(8, 8, key=KEY), eqx.nn.Linear(8, 3, key=KEY)], 8

    def __call__(self, x: jax.Array, scale: float = 1.0, *, key: jax.Array | None) -> jax.Array:
        x = self.drop(self.norm(jnp.tanh(self.fc1(x))), key=key)
        for block in self.blocks:
            x = block(x)
        return x * scale


class Batched(Net):
    def __call__(self, x: jax.Array, scale: float = 1.0, *, key: jax.Array | None = None) -> jax.Array:
        return jax.vmap(lambda x: Net.__call__(self, x, scale, key=key))(x)


class TorchNet(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm = torch.nn.Linear(4, 8), torch.nn.LayerNorm(8)
        self.blocks = torch.nn.ModuleList([torch.nn.Linear(8, 8), torch.nn.Linear(8, 3)])

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        x = self.norm(torch.tanh(self.fc1(x)))
        for block in self.blocks:
            x = block(x)
        return x * scale


X = images(5, 4).astype(np.float32)


def random(model: torch.nn.Module) -> torch.nn.Module:
    parity.randomize(model)
    return model


@pytest.mark.parametrize("batched", [False, True])
def test_one_example_or_a_batch(batched: bool):
    """Dropout is off, and the key that the model insists on is None."""
    model: Any = Batched() if batched else Net()
    adapter, torch_model = parity.equinox(model, batched), random(TorchNet())
    before = np.array(model.fc1.weight)
    parity.torch_to_jax(torch_model, adapter)
    np.testing.assert_array_equal(model.fc1.weight, before)
    np.testing.assert_array_equal(adapter.model.fc1.weight, torch_model.fc1.weight.detach())
    assert isinstance(adapter.model, type(model))
    assert adapter.model.drop.inference is False
    parity.assert_parity(torch_model, adapter, X)
    assert parity.check(torch_model, adapter, (X, 2.0), level="forward").passed


def test_the_layout_of_images_is_that_of_pytorch():
    conv = eqx.nn.Conv2d(3, 4, 3, key=KEY)
    adapter, torch_model = parity.equinox(conv), random(torch.nn.Conv2d(3, 4, 3))
    parity.torch_to_jax(torch_model, adapter)
    report = parity.assert_parity(torch_model, adapter, images(2, 3, 6, 5))
    assert "JAX's model takes input 0 as it is" in report.notes


def test_state():
    class Normed(eqx.Module):
        fc: eqx.nn.Linear
        norm: eqx.nn.BatchNorm

        def __init__(self) -> None:
            self.fc, self.norm = eqx.nn.Linear(4, 3, key=KEY), eqx.nn.BatchNorm(3, "batch", mode="batch")

        def __call__(self, x: jax.Array, state: eqx.nn.State) -> tuple[jax.Array, eqx.nn.State]:
            return self.norm(self.fc(x), state)

    class TorchNormed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.norm = torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.fc(x))

    model, state = eqx.nn.make_with_state(Normed)()
    torch_model = random(TorchNormed())
    adapter = parity.equinox(model, state=state)
    parity.torch_to_jax(torch_model, adapter)
    mean, _ = adapter.state.get(adapter.model.norm.batch_state_index)
    np.testing.assert_array_equal(mean, torch_model.norm.running_mean)
    parity.assert_parity(torch_model, adapter, X)
    for wrong in (lambda: parity.equinox(model), lambda: parity.equinox((model, state))):
        with pytest.raises(ValueError, match=r"write parity\.equinox\(model, state=state\)"):
            wrong()
    with pytest.raises(ValueError, match=r"state is a dict, not an equinox\.nn\.State"):
        parity.equinox(model, state={})


def test_rules_by_layer_type():
    """As for NNX: they come before the built-in ones."""

    class Turned(eqx.nn.Linear):
        def __call__(self, x: jax.Array, *, key: Any = None) -> jax.Array:
            return x @ self.weight + self.bias

    torch_model, adapter = random(torch.nn.Linear(4, 4)), parity.equinox(Turned(4, 4, key=KEY))
    rules = Rules(leaves={Turned: (LeafRule("weight", "weight", (1, 0)),)})
    parity.torch_to_jax(torch_model, adapter)
    assert not parity.check(torch_model, adapter, X, level="forward").passed
    ledger = parity.torch_to_jax(torch_model, adapter, rules=rules)
    assert len(ledger) == 2
    assert parity.check(torch_model, adapter, X, level="forward", rules=rules).passed


class Conv1D(torch.nn.Module):
    """Stores (in, out), as in transformers."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(features, width))
        self.bias = torch.nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


def test_matrices_of_layers_that_store_in_out():
    """The type of PyTorch's layer decides, also for square ones."""
    torch_model = random(torch.nn.Sequential(Conv1D(4, 8), Conv1D(8, 8)))
    layers = [eqx.nn.Linear(4, 8, key=KEY), eqx.nn.Linear(8, 8, key=KEY)]
    adapter = parity.equinox(eqx.nn.Sequential(layers))
    parity.torch_to_jax(torch_model, adapter)
    parity.assert_parity(torch_model, adapter, X, level="forward")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Net, "not the class Net"),
        (lambda x: x, "not a function"),
        (torch.nn.Linear(4, 3), "not a Linear"),
    ],
)
def test_what_is_no_equinox_model(model: Any, message: str):
    with pytest.raises(ValueError, match=f"takes a callable equinox.Module, {message}"):
        parity.equinox(model)


def test_a_model_of_a_batch_that_is_mapped():
    torch_model, adapter = random(TorchNet()), parity.equinox(Batched())
    parity.torch_to_jax(torch_model, adapter)
    with pytest.raises(ValueError, match="JAX's model cannot be run on these inputs"):
        parity.check(torch_model, adapter, X)
