"""Every layer of Equinox with a counterpart in PyTorch: carried both ways, and the same in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import parity
from tests.support.parity.layers import assert_the_same_layer, random
from tests.support.parity.pairs import images

KEY = jax.random.key(0)
Case = tuple[torch.nn.Module, eqx.Module, tuple[int, ...]]

LAYERS: dict[str, Callable[[], Case]] = {
    "Linear": lambda: (torch.nn.Linear(3, 5), eqx.nn.Linear(3, 5, key=KEY), (4, 3)),
    "square Linear": lambda: (torch.nn.Linear(5, 5), eqx.nn.Linear(5, 5, key=KEY), (4, 5)),
    "Conv1d": lambda: (torch.nn.Conv1d(3, 4, 3, padding=1), eqx.nn.Conv1d(3, 4, 3, padding=1, key=KEY), (2, 3, 9)),
    "Conv2d, all sizes equal": lambda: (torch.nn.Conv2d(3, 3, 3), eqx.nn.Conv2d(3, 3, 3, key=KEY), (2, 3, 8, 6)),
    "Conv2d, grouped": lambda: (
        torch.nn.Conv2d(6, 4, 3, groups=2),
        eqx.nn.Conv2d(6, 4, 3, groups=2, key=KEY),
        (2, 6, 5, 7),
    ),
    "Conv3d": lambda: (torch.nn.Conv3d(2, 3, 3), eqx.nn.Conv3d(2, 3, 3, key=KEY), (2, 2, 4, 5, 6)),
    "ConvTranspose1d": lambda: (
        torch.nn.ConvTranspose1d(3, 4, 3, stride=2),
        eqx.nn.ConvTranspose1d(3, 4, 3, stride=2, key=KEY),
        (2, 3, 5),
    ),
    "ConvTranspose2d, all sizes equal": lambda: (
        torch.nn.ConvTranspose2d(3, 3, 3, stride=2, padding=1),
        eqx.nn.ConvTranspose2d(3, 3, 3, stride=2, padding=1, key=KEY),
        (2, 3, 5, 6),
    ),
    "ConvTranspose3d": lambda: (
        torch.nn.ConvTranspose3d(2, 3, (1, 2, 3)),
        eqx.nn.ConvTranspose3d(2, 3, (1, 2, 3), key=KEY),
        (2, 2, 4, 5, 6),
    ),
    "LayerNorm": lambda: (torch.nn.LayerNorm(6), eqx.nn.LayerNorm(6), (4, 6)),
    "GroupNorm": lambda: (torch.nn.GroupNorm(2, 6), eqx.nn.GroupNorm(2, 6), (2, 6, 5, 4)),
    "RMSNorm": lambda: (torch.nn.RMSNorm(6, eps=1e-5), eqx.nn.RMSNorm(6, eps=1e-5, use_bias=False), (4, 6)),
    "PReLU": lambda: (torch.nn.PReLU(), eqx.nn.PReLU(0.3), (2, 3, 5)),
    "PReLU of channels": lambda: (torch.nn.PReLU(3), eqx.nn.PReLU(jnp.ones((3, 1))), (2, 3, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_carried_both_ways_and_computes_the_same(name: str):
    torch_layer, layer, shape = LAYERS[name]()
    ledger = assert_the_same_layer(torch_layer, parity.equinox(layer), [images(*shape).astype(np.float32)])
    assert not ledger.notes


def test_embedding():
    """Equinox takes one token: mapped over a batch of them."""
    adapter = parity.equinox(eqx.nn.Embedding(7, 3, key=KEY))
    assert_the_same_layer(torch.nn.Embedding(7, 3), adapter, [np.array([0, 6, 2])])


class Norm(eqx.Module):
    norm: eqx.nn.BatchNorm

    def __init__(self, mode: Any) -> None:
        self.norm = eqx.nn.BatchNorm(6, "batch", mode=mode)

    def __call__(self, x: jax.Array, state: eqx.nn.State) -> tuple[jax.Array, eqx.nn.State]:
        return self.norm(x, state)


class TorchNorm(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x)


@pytest.mark.parametrize("mode", ["ema", "batch"])
@pytest.mark.parametrize("split", [True, False])
def test_batch_norm_and_its_statistics(mode: str, split: bool):
    if split:
        model, state = eqx.nn.make_with_state(Norm)(mode)
    else:
        model = Norm(mode)  # holds the first values of its state too
        state = eqx.nn.State(model)
    adapter = parity.equinox(model, state=state)
    held = f"norm.{'ema_state' if mode == 'ema' else 'batch_state'}_index"
    ledger = assert_the_same_layer(TorchNorm(), adapter, [images(2, 6, 5, 4).astype(np.float32)])
    assert {(entry.torch, entry.jax) for entry in ledger} == {
        ("norm.weight", "norm.weight"),
        ("norm.bias", "norm.bias"),
        ("norm.running_mean", f"{held}.0"),
        ("norm.running_var", f"{held}.1"),
    }
    assert len(ledger.jax_only) == 1


class Attention(eqx.Module):
    attn: eqx.nn.MultiheadAttention

    def __init__(self, bias: bool) -> None:
        own = {f"use_{name}_bias": bias for name in ("query", "key", "value", "output")}
        self.attn = eqx.nn.MultiheadAttention(2, 6, key=KEY, **own)

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return self.attn(q, k, v)


@pytest.mark.parametrize("bias", [True, False])
def test_attention(bias: bool):
    torch_layer = torch.nn.Module()
    torch_layer.attn = torch.nn.MultiheadAttention(6, 2, batch_first=True, bias=bias)
    torch_layer.forward = lambda *given: torch_layer.attn(*given)[0]  # type: ignore[method-assign]
    q, k = images(2, 5, 6).astype(np.float32), images(2, 7, 6, seed=2).astype(np.float32)
    assert_the_same_layer(torch_layer, parity.equinox(Attention(bias)), [q, k, k])


class Cell(eqx.Module):
    cell: eqx.Module

    def __call__(self, x: jax.Array, h: jax.Array) -> jax.Array:
        if isinstance(self.cell, eqx.nn.LSTMCell):
            return self.cell(x, (h, jnp.zeros_like(h)))[0]
        return self.cell(x, h)  # type: ignore[operator]


class TorchCell(torch.nn.Module):
    def __init__(self, cell: torch.nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> Any:
        return self.cell(x, (h, torch.zeros_like(h))) if isinstance(self.cell, torch.nn.LSTMCell) else self.cell(x, h)


@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell"])
@pytest.mark.parametrize("bias", [True, False])
def test_cells(kind: str, bias: bool):
    torch_layer = TorchCell(getattr(torch.nn, kind)(3, 4, bias=bias))
    adapter = parity.equinox(Cell(getattr(eqx.nn, kind)(3, 4, use_bias=bias, key=KEY)))
    if bias:
        with pytest.raises(ValueError, match=r"bias_hh is not zero, and JAX has one bias"):
            parity.torch_to_jax(torch_layer, adapter)
    x, h = images(2, 3).astype(np.float32), images(2, 4, seed=2).astype(np.float32)
    assert_the_same_layer(torch_layer, adapter, [x, h])
    if bias:
        assert adapter.model.cell.bias.shape == ({"LSTMCell": 4, "GRUCell": 3}[kind] * 4,)  # type: ignore[attr-defined]


def test_the_gradient_of_both_biases_of_a_gru():
    torch_layer, adapter = (
        random(TorchCell(torch.nn.GRUCell(3, 4))),
        parity.equinox(Cell(eqx.nn.GRUCell(3, 4, key=KEY))),
    )
    parity.torch_to_jax(torch_layer, adapter)
    report = parity.assert_parity(torch_layer, adapter, (images(2, 3), images(2, 4, seed=2)))
    assert "cell.bias_hh" in {row.name for row in report.rows if row.kind == "gradient"}


class Layers(eqx.Module):
    """Recurrent layers, one after the other, of one direction or of both."""

    rnn: list[dict[str, eqx.Module]]

    def __init__(self, cell: type[eqx.Module], both: bool) -> None:
        ways = ("forward", "backward") if both else ("forward",)
        self.rnn = [{way: cell(size, 4, key=KEY) for way in ways} for size in (3, 4 * len(ways))]

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.rnn:
            ways = sorted(layer, reverse=True)  # JAX sorts the keys of a dict
            x = jnp.concatenate([run(layer[way], x, way == "backward") for way in ways], -1)
        return x


def run(cell: Any, x: jax.Array, reverse: bool) -> jax.Array:
    zeros = jnp.zeros(4, x.dtype)

    def step(state: Any, x: jax.Array) -> Any:
        state = cell(x, state)
        return state, state[0] if isinstance(state, tuple) else state

    start = (zeros, zeros) if isinstance(cell, eqx.nn.LSTMCell) else zeros
    return jax.lax.scan(step, start, x, reverse=reverse)[1]


class TorchLayers(torch.nn.Module):
    def __init__(self, kind: type[torch.nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.rnn = kind(3, 4, num_layers=2, batch_first=True, **options)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rnn(x)[0]


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize(("kind", "cell"), [(torch.nn.LSTM, eqx.nn.LSTMCell), (torch.nn.GRU, eqx.nn.GRUCell)])
def test_recurrent_layers(kind: type[torch.nn.RNNBase], cell: type[eqx.Module], both: bool):
    adapter = parity.equinox(Layers(cell, both))
    assert_the_same_layer(TorchLayers(kind, bidirectional=both), adapter, [images(2, 5, 3).astype(np.float32)])


class Inside(eqx.Module):
    """A model of one layer, called `fc`, inside of another; with a state, for `SpectralNorm`."""

    fc: eqx.Module

    def __call__(self, x: jax.Array, *state: Any) -> Any:
        return self.fc(x, *state)  # type: ignore[operator]


def test_weight_norm():
    adapter = parity.equinox(Inside(eqx.nn.WeightNorm(eqx.nn.Conv1d(3, 4, 2, key=KEY))))
    around = torch.nn.utils.parametrizations.weight_norm
    torch_layer = torch.nn.Sequential()
    torch_layer.add_module("fc", around(torch.nn.Conv1d(3, 4, 2)))
    assert_the_same_layer(torch_layer, adapter, [images(2, 3, 6).astype(np.float32)])


def test_spectral_norm():
    model, state = eqx.nn.make_with_state(
        lambda: Inside(eqx.nn.SpectralNorm(eqx.nn.Conv1d(3, 4, 2, key=KEY), "weight", key=KEY))
    )()
    torch_layer = torch.nn.Sequential()
    torch_layer.add_module("fc", torch.nn.utils.parametrizations.spectral_norm(torch.nn.Conv1d(3, 4, 2)))
    ledger = assert_the_same_layer(
        torch_layer, parity.equinox(model, state=state), [images(2, 3, 6).astype(np.float32)]
    )
    assert not ledger.torch_only


def test_sequential_has_no_extra_name_in_pytorch():
    layers = [eqx.nn.Linear(3, 5, key=KEY), eqx.nn.Lambda(jnp.tanh), eqx.nn.Linear(5, 2, key=KEY)]
    torch_model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
    ledger = assert_the_same_layer(torch_model, parity.equinox(eqx.nn.Sequential(layers)), [images(4, 3)])
    assert next(iter(ledger)).jax == "layers.0.weight"
