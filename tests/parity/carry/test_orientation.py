"""A square matrix follows the type of its layer, and is not guessed in silence."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest
import torch
from flax import nnx

from parity import LeafRule, Rules, check, jax_to_torch, torch_to_jax
from parity.carry.orientation import Choice, choose
from tests.parity.carry.test_ledger import passes, x


class Conv1D(torch.nn.Module):
    """That of GPT-2: the weight is (in, out)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(inputs, outputs))
        self.bias = torch.nn.Parameter(torch.randn(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


class Dense(Conv1D):
    """Of another name."""


class OutIn(torch.nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(outputs, inputs))
        self.bias = torch.nn.Parameter(torch.randn(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.weight, self.bias)


class TorchChain(torch.nn.Module):
    def __init__(self, kind: Callable[[int, int], torch.nn.Module], *sizes: int) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(kind(a, b) for a, b in itertools.pairwise(sizes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


class FlaxChain(nnx.Module):
    def __init__(self, *sizes: int) -> None:
        rngs = nnx.Rngs(0)
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(sizes)])

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = jnp.tanh(layer(x))
        return x


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        (Conv1D, (6, 6)),  # known by its name
        (Dense, (6, 4, 4)),  # the other layer of this type tells
        (Dense, (6, 4)),
        (OutIn, (6, 6, 5)),
        (OutIn, (6, 6)),  # as of nn.Linear, and told
        (torch.nn.Linear, (6, 6)),
    ],
)
def test_a_square_matrix_follows_the_type_of_its_layer(
    kind: Callable[[int, int], torch.nn.Module], sizes: tuple[int, ...]
):
    source, model = TorchChain(kind, *sizes), FlaxChain(*sizes)
    ledger = torch_to_jax(source, model)
    passes(source, model, x, level="forward")
    assert bool(ledger.notes) == (kind is OutIn and sizes == (6, 6))
    target = TorchChain(kind, *sizes)
    jax_to_torch(model, target)
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


def test_a_square_matrix_that_nothing_tells_of_is_not_guessed_in_silence():
    source, model = TorchChain(Dense, 6, 6), FlaxChain(6, 6)
    ledger = torch_to_jax(source, model)
    (note,) = ledger.notes
    assert note.startswith(
        "layers.0.weight [6, 6] of Dense is square: it was transposed, as of nn.Linear; if Dense keeps"
    )
    report = check(source, model, x, level="forward")
    assert not report.passed
    assert note in report.notes
    rules = Rules(leaves={nnx.Linear: (LeafRule("weight", "kernel"),)})
    assert not torch_to_jax(source, model, rules=rules).notes
    passes(source, model, x, level="forward", rules=rules)


# ---- alternative rules ----

TWO = (LeafRule("weight", "w", (1, 0)), LeafRule("weight", "w", (0, 1)))


def choice(
    shape: tuple[int, ...],
    jax_shape: tuple[int, ...],
    rules: tuple[LeafRule, ...] = TWO,
    module: torch.nn.Module | None = None,
    name: str = "a",
) -> Choice:
    return Choice(f"{name}.weight", f"{name}.w", rules, module, shape, jax_shape)


def test_the_shape_decides_between_alternatives():
    for jax_shape, rule in (((3, 2), TWO[0]), ((2, 3), TWO[1])):
        found, decided, notes = choose([choice((2, 3), jax_shape)])
        assert found == {("a.weight", "a.w"): rule}
        assert decided == {"a.weight"}
        assert not notes


def test_others_of_the_same_type_decide_what_the_shape_does_not():
    linear = torch.nn.Linear(2, 2)
    square = choice((2, 2), (2, 2), module=linear, name="b")
    found, _, notes = choose([square])
    assert found["b.weight", "b.w"] == TWO[0]
    found, _, notes = choose([choice((2, 3), (2, 3), module=linear), square])
    assert found["b.weight", "b.w"] == TWO[1]
    assert "b.weight" in notes[0]
    assert "LeafRule('b.weight', 'b.w', (1, 0))" in notes[0]
    found, _, _ = choose([choice((2, 3), (2, 3), module=torch.nn.Bilinear(1, 1, 1)), square])  # of another type
    assert found["b.weight", "b.w"] == TWO[0]
    assert not choose([choice((1, 3), (1, 3)), choice((1, 1), (1, 1), name="b")])[2]  # nothing to decide


def test_pytorchs_layer_type_decides_between_kernels():
    usual = LeafRule("weight", "w", (2, 1, 0))
    turned = LeafRule("weight", "w", (2, 0, 1), flip=(0,), layer="ConvTranspose")

    class Subclass(torch.nn.ConvTranspose1d):
        pass

    for module, rule in (
        (torch.nn.Conv1d(2, 2, 2), usual),
        (torch.nn.ConvTranspose1d(2, 2, 2), turned),
        (Subclass(2, 2, 2), turned),
    ):
        found, _, notes = choose([choice((2, 2, 2), (2, 2, 2), (usual, turned), module)])
        assert found["a.weight", "a.w"] == rule
        assert not notes
    found, _, notes = choose([choice((2, 2, 2), (2, 2, 2), (usual, turned))])  # a state dict: no types
    assert found["a.weight", "a.w"] == usual
    assert "flip=(0,)" in notes[0]


def test_a_reshape_splits_or_merges_neighbouring_axes_only():
    rules = (LeafRule("weight", "w", (1, 0)), LeafRule("weight", "w", (1, 0), reshape=True))
    for jax_shape, rule in (((4, 2, 3), rules[1]), ((2, 2, 6), rules[1]), ((3, 8), rules[0])):
        assert choose([choice((6, 4), jax_shape, rules)])[0]["a.weight", "a.w"] == rule
