"""Haiku models: with and without state, module names, and wrong arguments."""

from __future__ import annotations

from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import parity
from tests.support.parity.pairs import images

KEY = jax.random.key(0)
X = images(5, 4).astype(np.float32)


class Mlp(hk.Module):
    def __init__(self, name: str | None = None) -> None:
        super().__init__(name)
        self.fc = hk.Linear(8, name="fc")

    def __call__(self, x: Any) -> Any:
        return hk.Linear(3, name="out")(jnp.tanh(self.fc(x)))


def net(x: Any, is_training: bool = False) -> Any:
    x = hk.BatchNorm(True, True, 0.9, name="norm")(x, is_training)
    x = hk.dropout(hk.next_rng_key(), 0.5, x) if is_training else x
    return Mlp("mlp")(x)


class TorchNet(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(4)
        self.mlp = torch.nn.Module()
        self.mlp.fc, self.mlp.out = torch.nn.Linear(4, 8), torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mlp.out(torch.tanh(self.mlp.fc(self.norm(x))))


def random(model: torch.nn.Module) -> torch.nn.Module:
    parity.randomize(model)
    return model


NET = hk.transform_with_state(net)
PARAMS, STATE = NET.init(KEY, X, True)


def test_a_model_with_state():
    """`mlp/~/fc` is `mlp.fc`."""
    adapter, torch_model = parity.haiku(NET, PARAMS, STATE), random(TorchNet())
    before = jax.tree.map(np.array, PARAMS)
    ledger = parity.torch_to_jax(torch_model, adapter)
    assert {"mlp.fc.w", "mlp.out.b", "norm.mean_ema.average"} <= {entry.jax for entry in ledger}
    assert jax.tree.all(jax.tree.map(np.array_equal, before, PARAMS))
    assert adapter.params.keys() == PARAMS.keys()
    average = adapter.state["norm/~/mean_ema"]["average"]
    np.testing.assert_array_equal(average.ravel(), torch_model.norm.running_mean)
    parity.assert_parity(torch_model, adapter, X)


@pytest.mark.parametrize("keyless", [False, True])
def test_a_model_without_state(keyless: bool):
    """`hk.without_apply_rng` takes no generator's key."""
    transformed = hk.transform(lambda x: Mlp("mlp")(x))
    transformed = hk.without_apply_rng(transformed) if keyless else transformed
    adapter = parity.haiku(transformed, transformed.init(KEY, X))
    torch_model = torch.nn.Module()
    torch_model.mlp = torch.nn.Sequential()
    torch_model.mlp.add_module("fc", torch.nn.Linear(4, 8))
    torch_model.mlp.add_module("tanh", torch.nn.Tanh())
    torch_model.mlp.add_module("out", torch.nn.Linear(8, 3))
    torch_model.forward = torch_model.mlp.forward  # type: ignore[method-assign]
    random(torch_model)
    parity.torch_to_jax(torch_model, adapter)
    assert parity.check(torch_model, adapter, X, level="forward").passed


def test_weights_that_are_abstract_are_refused():
    """What PyTorch has is filled; the counters of the statistics are not."""
    abstract = jax.eval_shape(lambda key: NET.init(key, X, True), KEY)
    adapter, torch_model = parity.haiku(NET, *abstract), random(TorchNet())
    parity.torch_to_jax(torch_model, adapter)
    with pytest.raises(ValueError, match=r"norm\.mean_ema\.counter of JAX holds no numbers: initialise the model"):
        parity.check(torch_model, adapter, X)


def test_what_switches_training_off():
    adapter, torch_model = parity.haiku(NET, PARAMS, STATE, is_training=True), random(TorchNet())
    parity.torch_to_jax(torch_model, adapter)
    message = r"the model draws random numbers: pass what switches that off, as .*is_training=False"
    with pytest.raises(ValueError, match=message):
        parity.check(torch_model, adapter, X)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((net, PARAMS), "takes what hk.transform or hk.transform_with_state returned, not net"),
        ((NET, PARAMS), r"needs its state: write parity\.haiku\(transformed, params, state\)"),
        ((NET, (PARAMS, STATE)), "not a tuple, the params and the state"),
        ((hk.transform(net), PARAMS, STATE), r"hk\.transform has no state"),
    ],
)
def test_what_is_no_transformed_function_with_its_weights(arguments: Any, message: str):
    with pytest.raises(ValueError, match=message):
        parity.haiku(*arguments)
