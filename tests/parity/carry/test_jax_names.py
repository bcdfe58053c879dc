"""Recurrent layers of PyTorch, whose cells are modules of their own in JAX."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from parity import build_ledger, check, torch_to_jax
from parity.carry.jax_names import Wanted, recurrent
from parity.carry.rules import LeafRule
from tests.support.golden import rel_f
from tests.support.parity.layers import random
from tests.support.parity.pairs import images


def wanted(*cells: str) -> Wanted:
    rule = LeafRule("weight_ih", "w")
    return {f"{cell}.weight_ih".removeprefix("."): {f"{cell}.w": [rule]} for cell in cells}


def partners(cells: list[str], names: list[str]) -> tuple[dict[str, str], list[str]]:
    more, notes = recurrent(wanted(*cells), names)
    return {name: next(iter(own)).removesuffix(".w") for name, own in more.items() if own}, notes


@pytest.mark.parametrize(
    "cells",
    [
        ["lstm.0", "lstm.2", "lstm.10"],
        ["lstm_0.cell", "lstm_2.cell", "lstm_10.cell"],
        ["lstm.layers_0.cell", "lstm.layers_2.cell", "lstm.layers_10.cell"],
    ],
)
def test_layers_are_cells_in_order(cells: list[str]):
    names = [f"lstm.weight_ih_l{i}" for i in range(3)]
    assert partners([*cells[::-1], "other"], names) == (dict(zip(names, cells, strict=True)), [])


@pytest.mark.parametrize(("ahead", "back"), [("forward_rnn", "backward_rnn"), ("fwd", "bwd"), ("f", "reverse")])
def test_directions_are_told_by_their_names(ahead: str, back: str):
    cells = [f"enc.lstm.{i}.{way}" for i in range(2) for way in (back, ahead)]
    found, notes = partners(cells, [f"enc.lstm.weight_ih_l{i}{way}" for i in range(2) for way in ("", "_reverse")])
    assert found == {
        "enc.lstm.weight_ih_l0": f"enc.lstm.0.{ahead}",
        "enc.lstm.weight_ih_l0_reverse": f"enc.lstm.0.{back}",
        "enc.lstm.weight_ih_l1": f"enc.lstm.1.{ahead}",
        "enc.lstm.weight_ih_l1_reverse": f"enc.lstm.1.{back}",
    }
    assert not notes


def test_what_only_the_order_tells_is_said():
    names = ["lstm.weight_ih_l0", "lstm.weight_ih_l0_reverse"]
    for cells in (["lstm.0", "lstm.1"], ["LSTMCell_0", "LSTMCell_1"]):
        found, notes = partners(cells, names)
        assert list(found.values()) == cells
        assert notes == [f"the cells of lstm were taken in order: {cells[0]}, {cells[1]}"]


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        (["lstm.0"], ["lstm.weight_ih_l0", "lstm.weight_ih_l1"]),
        (["lstm.bwd", "lstm.fwd"], ["lstm.weight_ih_l0", "lstm.weight_ih_l1"]),
        (["cell_0", "cell_1"], ["a.weight_ih_l0", "b.weight_ih_l0"]),
    ],
)
def test_cells_that_do_not_correspond_are_left_alone(cells: list[str], names: list[str]):
    assert partners(cells, names) == ({}, [])


class Torch(torch.nn.Module):
    def __init__(self, kind: type[torch.nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.rnn = kind(3, 4, batch_first=True, **options)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rnn(x)[0]


class Stack(nnx.Module):
    """Layers of one direction or of both, from `flax.nnx`."""

    def __init__(self, cell: type[nnx.Module], layers: int, *, both: bool = False) -> None:
        rngs = nnx.Rngs(0)

        def layer(size: int) -> nnx.RNN:
            return nnx.RNN(cell(size, 4, rngs=rngs), rngs=rngs)

        sizes = [3, *[8 if both else 4] * (layers - 1)]
        self.rnn = nnx.List([nnx.Bidirectional(layer(n), layer(n), rngs=rngs) if both else layer(n) for n in sizes])

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.rnn:
            x = layer(x)
        return x


@pytest.mark.parametrize(
    ("kind", "cell", "layers", "both"),
    [
        (torch.nn.LSTM, nnx.LSTMCell, 1, False),
        (torch.nn.LSTM, nnx.LSTMCell, 2, True),
        (torch.nn.LSTM, nnx.OptimizedLSTMCell, 3, False),
        (torch.nn.RNN, nnx.SimpleCell, 2, False),
    ],
)
def test_recurrent_layers_of_nnx(kind: type[torch.nn.RNNBase], cell: type[nnx.Module], layers: int, both: bool):
    torch_model, model = random(Torch(kind, num_layers=layers, bidirectional=both)), Stack(cell, layers, both=both)
    ledger = torch_to_jax(torch_model, model)
    assert {entry.torch for entry in ledger} == set(torch_model.state_dict())
    x = images(2, 5, 3).astype(np.float32)
    with torch.no_grad():
        expected = torch_model(torch.from_numpy(x)).numpy()
    assert rel_f(np.asarray(model(jnp.asarray(x))), expected) < 1e-6


def test_a_check_of_recurrent_layers_in_both_directions():
    torch_model, model = random(Torch(torch.nn.LSTM, bidirectional=True)), Stack(nnx.LSTMCell, 1, both=True)
    torch_to_jax(torch_model, model)
    assert check(torch_model, model, images(2, 4, 3)).passed
    with pytest.raises(ValueError, match=r"rnn\.weight_ih_l1"):
        build_ledger(Torch(torch.nn.LSTM, num_layers=2), model)
