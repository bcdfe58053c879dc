"""A wrong gradient is located to the module that computes with the last activation whose gradient is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import parity


class TorchMlp(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.act, self.norm = torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.LayerNorm(8)
        self.fc2 = torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.norm(self.act(self.fc1(x))))


@jax.custom_vjp
def tanh(x: jax.Array) -> jax.Array:
    """The right values and a derivative without its square."""
    return jnp.tanh(x)


tanh.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (g * (1 - jnp.tanh(x)),))


def layer_norm(p: Any, x: jax.Array, cut: Callable[[jax.Array], jax.Array] = lambda x: x) -> jax.Array:
    mean = x.mean(-1, keepdims=True)
    variance = cut(((x - mean) ** 2).mean(-1, keepdims=True))
    return (x - mean) / jnp.sqrt(variance + 1e-5) * p["norm"]["w"][None] + p["norm"]["b"][None]


def port(act: Callable[..., Any] = jnp.tanh, **options: Any) -> Callable[..., jax.Array]:
    def f(p: Any, x: jax.Array) -> jax.Array:
        x = layer_norm(p, act(x @ p["fc1"]["w"] + p["fc1"]["b"][None]), **options)
        return x @ p["fc2"]["w"] + p["fc2"]["b"][None]

    return f


def cut_weight(p: Any, x: jax.Array) -> jax.Array:
    return port()({**p, "fc1": {**p["fc1"], "w": jax.lax.stop_gradient(p["fc1"]["w"])}}, x)


def checked(f: Callable[..., jax.Array]) -> parity.Report:
    model = TorchMlp()
    parity.randomize(model)
    weights = {
        name: {"w": jnp.asarray(np.asarray(layer.weight.detach()).T), "b": jnp.asarray(np.asarray(layer.bias.detach()))}
        for name, layer in model.named_children()
        if name != "act"
    }
    return parity.check(model, parity.function(f, weights), np.random.RandomState(0).standard_normal((5, 6)))


@pytest.mark.parametrize(
    ("f", "module", "says"),
    [
        (port(tanh), "act", "the gradient by the output of fc1 differs, and no later one, in JAX test_backward.py:"),
        (port(cut=jax.lax.stop_gradient), "norm", "the gradient by the output of act differs"),
        (cut_weight, "fc1", "the gradient of its own parameter differs"),
    ],
    ids=["derivative", "cut activation", "cut weight"],
)
def test_the_module_with_a_wrong_derivative_is_found(f: Callable[..., jax.Array], module: str, says: str):
    report = checked(f)
    assert not report.passed
    assert not [row for row in report.failures if row.kind in ("layer", "calls", "output")]
    assert report.first_divergence == module
    (row,) = [row for row in report.failures if row.kind == "derivative"]
    assert says in row.note


def test_right_gradients_have_no_row():
    report = checked(port())
    assert report.passed, str(report)
    assert not [row for row in report.rows if row.kind == "derivative"]
