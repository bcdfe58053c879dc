"""A tagger with a bidirectional LSTM of two layers: `torch.nn.LSTM`; Equinox, one sentence at a time.

The port has one bias for each cell, the sum of PyTorch's two, as cells in JAX have. Shapes: T steps, S features of the
state of each direction.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import torch

from tests.foreign.pairs.common import Bug, ForeignPair, Side, array, integers, randomize

V, D, S, T, TAGS, DEPTH = 21, 10, 6, 7, 5, 2


class TorchTagger(torch.nn.Module):
    """(B, T) -> (B, T, TAGS)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(V, D)
        self.lstm = torch.nn.LSTM(D, S, num_layers=DEPTH, batch_first=True, bidirectional=True)
        self.hidden2tag = torch.nn.Linear(2 * S, TAGS)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        y, _ = self.lstm(self.embedding(words))
        return self.hidden2tag(y)


class Cell(eqx.Module):
    """Gates in PyTorch's order: input, forget, cell, output."""

    w: jax.Array
    u: jax.Array
    b: jax.Array
    bug: str = eqx.field(static=True)

    def __call__(
        self, state: tuple[jax.Array, jax.Array], x: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        h, c = state
        z = self.w @ x + self.u @ h + self.b
        first, second, third, fourth = jnp.split(z, 4)
        i, f = jax.nn.sigmoid(first), jax.nn.sigmoid(third if self.bug == "gate_order" else second)  # bug: gate_order
        g, o = jnp.tanh(second if self.bug == "gate_order" else third), jax.nn.sigmoid(fourth)
        c = f * c + i * g
        new = o * (c if self.bug == "no_tanh" else jnp.tanh(c))  # bug: no_tanh
        return (new, c), new

    def over(self, xs: jax.Array) -> jax.Array:
        zero = jnp.zeros(S, xs.dtype)
        return jax.lax.scan(lambda state, x: self(state, x), (zero, zero), xs)[1]


class BidirectionalLayer(eqx.Module):
    forward: Cell
    backward: Cell
    bug: str = eqx.field(static=True)

    def __call__(self, xs: jax.Array) -> jax.Array:
        there, back = self.forward.over(xs), self.backward.over(xs[::-1])
        if self.bug != "not_turned_back":
            back = back[::-1]
        return jnp.concatenate([there, back], -1)  # bug: not_turned_back


class Tagger(eqx.Module):
    words: eqx.nn.Embedding
    layers: list[BidirectionalLayer]
    tags: eqx.nn.Linear

    def __call__(self, words: jax.Array) -> jax.Array:
        x = jax.vmap(self.words)(words)
        for layer in self.layers:
            x = layer(x)
        return jax.vmap(self.tags)(x)


def converted(model: Any, bug: str) -> Tagger:
    def cell(suffix: str, bug: str) -> Cell:
        w, u, b1, b2 = (
            jnp.asarray(array(getattr(model.lstm, f"{name}_{suffix}")))
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        return Cell(w, u, b1 + b2, bug)  # exact: see `with_short_biases`

    bugs = [bug if i == DEPTH - 1 else "" for i in range(DEPTH)]
    layers = [BidirectionalLayer(cell(f"l{i}", b), cell(f"l{i}_reverse", b), b) for i, b in enumerate(bugs)]
    words = eqx.nn.Embedding(weight=jnp.asarray(array(model.embedding.weight)))
    tags = eqx.nn.Linear(2 * S, TAGS, key=jax.random.key(0))
    new = (jnp.asarray(array(model.hidden2tag.weight)), jnp.asarray(array(model.hidden2tag.bias)))
    return Tagger(words, layers, eqx.tree_at(lambda layer: (layer.weight, layer.bias), tags, new))


def with_short_biases(model: TorchTagger) -> TorchTagger:
    """Round the biases to few bits, so that the sum of two is a float32 number."""
    for name, parameter in model.lstm.named_parameters():
        if name.startswith("bias"):
            parameter.data = (parameter.data * 2**20).round() / 2**20
    return model


PAIR = ForeignPair(
    name="lstm_equinox",
    file=__file__,
    torch_model=lambda seed: with_short_biases(randomize(TorchTagger(), seed)),
    jax_side=lambda model, bug: Side("equinox", converted(model, bug)),
    inputs=lambda seed: (integers(seed, V, 3, T),),
    bugs={"gate_order": Bug(("lstm",)), "no_tanh": Bug(("lstm",)), "not_turned_back": Bug(("lstm",))},
)
