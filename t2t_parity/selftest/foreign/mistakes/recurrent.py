"""Mistakes in the LSTM and in the GRU: gates, biases, directions, states."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from t2t_parity.selftest.foreign.recurrent import S
from t2t_parity.selftest.mutation import calling, changing, exchanged, mistakes_in

stop = jax.lax.stop_gradient
lstm, gru = mistakes_in("lstm"), mistakes_in("gru")


def _picked(*order: int) -> Any:
    """Read the gates in another order."""

    def gates(self: Any, original: Any, z: jax.Array) -> list[jax.Array]:
        parts = original(z)
        return [parts[i] for i in order]

    return gates


def _forget_more(self: Any, original: Any, z: jax.Array) -> list[jax.Array]:
    i, f, g, o = original(z)
    return [i, f + 1, g, o]


def _one_bias(self: Any, original: Any, x: jax.Array, h: jax.Array, end: str) -> jax.Array:
    return original(x, h, end) - getattr(self, f"bias_hh_l0{end}")[...][None]


def _exchanged_weights(self: Any, original: Any, x: jax.Array, h: jax.Array, end: str) -> jax.Array:
    return original(h, x, end)


def _step(next_: Any) -> Any:
    """Replace the cell by next_(i, f, g, o, c) -> h, c, from the pre-activations of the gates."""
    return lambda self, original, z, c: next_(*self.gates(z), c)


def _hard(x: jax.Array) -> jax.Array:
    """Hard sigmoid of Keras 1 and 2: 0.2 x + 0.5, clipped to [0, 1]."""
    return jnp.clip(0.2 * x + 0.5, 0, 1)


def _hard_cell(i: Any, f: Any, g: Any, o: Any, c: Any) -> Any:
    c = _hard(f) * c + _hard(i) * jnp.tanh(g)
    return _hard(o) * jnp.tanh(c), c


def _linear_out(i: Any, f: Any, g: Any, o: Any, c: Any) -> Any:
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * c, c


def _coupled(i: Any, f: Any, g: Any, o: Any, c: Any) -> Any:
    forget = jax.nn.sigmoid(f)
    c = forget * c + (1 - forget) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def _not_turned_back(self: Any, original: Any, x: jax.Array) -> Any:
    y, h, c = original(x)
    return y[:, ::-1], h, c


def _not_turned(self: Any, original: Any, x: jax.Array) -> Any:
    return self.along(x, "_reverse")


def _states_exchanged(self: Any, original: Any, x: jax.Array) -> Any:
    y, (h, c) = original(x)
    return y, (c, h)


CELL = "lstm"

LSTM = (
    lstm("gates i, g, f, o", CELL, "gate order", calling(CELL, _picked(0, 2, 1, 3), "gates")),
    lstm("gates i, f, o, g", CELL, "gate order", calling(CELL, _picked(0, 1, 3, 2), "gates")),
    lstm("gates f, i, g, o", CELL, "gate order", calling(CELL, _picked(1, 0, 2, 3), "gates")),
    lstm("1 added to the forget gate", CELL, "bias", calling(CELL, _forget_more, "gates"), also=("gate bias",)),
    lstm("one bias of two", CELL, "bias", calling(CELL, _one_bias, "projected"), also=("gate bias",)),
    lstm("hard sigmoid", CELL, "activation", calling(CELL, _step(_hard_cell), "step")),
    lstm("output without tanh", CELL, "activation", calling(CELL, _step(_linear_out), "step"), also=("step left out",)),
    lstm("forget gate for both", CELL, None, calling(CELL, _step(_coupled), "step"), also=("gate order",)),
    lstm(
        "input and state exchanged", CELL, None, calling(CELL, _exchanged_weights, "projected"), also=("wrong tensor",)
    ),
    lstm(
        "backward outputs not turned back",
        CELL,
        None,
        calling(CELL, _not_turned_back, "backwards"),
        also=("axis flipped", "direction"),
    ),
    lstm(
        "backward direction reads forwards",
        CELL,
        None,
        calling(CELL, _not_turned, "backwards"),
        also=("axis flipped", "direction"),
    ),
    lstm(
        "directions exchanged",
        CELL,
        "parts order",
        calling(CELL, lambda self, original, forth, back: original(back, forth), "joined"),
        also=("concat order", "direction"),
    ),
    lstm("c returned for h", CELL, None, calling(CELL, _states_exchanged), also=("wrong tensor", "output order")),
    lstm(
        "last outputs for last states",
        "the model",
        None,
        calling("", lambda self, original, y, h: y[:, -1], "last"),
        also=("token taken", "wrong tensor"),
    ),
    lstm(
        "states in the other order",
        "the model",
        "concat order",
        calling("", lambda self, original, y, h: jnp.concatenate((h[1], h[0]), -1), "last"),
        also=("parts order",),
    ),
    lstm(
        "biases exchanged",
        CELL,
        None,
        exchanged("lstm.bias_ih_l0", "lstm.bias_ih_l0_reverse"),
        "conversion",
        also=("bias", "gate bias", "direction"),
    ),
    lstm(
        "weights of the state transposed gate by gate",
        CELL,
        None,
        changing("lstm.weight_hh_l0", lambda x: x.reshape(4, S, S).swapaxes(1, 2).reshape(4 * S, S)),
        "conversion",
        also=("kernel transposed",),
    ),
    lstm(
        "gradient cut between steps",
        CELL,
        None,
        calling(CELL, lambda self, original, h: stop(h), "carried"),
        "gradient",
        also=("gradient cut",),
    ),
)


def _reset_before(self: Any, original: Any, layer: int, x: jax.Array, h: jax.Array) -> jax.Array:
    """Apply the reset gate to the state before the product: Cho's first formula, Keras' `reset_after=False`."""
    ih, hh, b, c = self.weights(layer)
    (r, z, n), (hr, hz, _) = self.gates(x @ ih + b), self.gates(h @ hh + c)
    r, z = self.squash(r + hr), self.squash(z + hz)
    return self.mixed(z, jnp.tanh(n + self.gates((r * h) @ hh + c)[2]), h)


def _bias_outside(self: Any, original: Any, layer: int, x: jax.Array, h: jax.Array) -> jax.Array:
    """Add the bias of the state outside the reset gate."""
    ih, hh, b, c = self.weights(layer)
    (r, z, n), (hr, hz, hn) = self.gates(x @ ih + b + c), self.gates(h @ hh)
    r, z = self.squash(r + hr), self.squash(z + hz)
    return self.mixed(z, jnp.tanh(n + r * hn), h)


def _without_reset(self: Any, original: Any, layer: int, x: jax.Array, h: jax.Array) -> jax.Array:
    ih, hh, b, c = self.weights(layer)
    (_, z, n), (_, hz, hn) = self.gates(x @ ih + b), self.gates(h @ hh + c)
    return self.mixed(self.squash(z + hz), jnp.tanh(n + hn), h)


def _relu_inside(self: Any, original: Any, layer: int, x: jax.Array, h: jax.Array) -> jax.Array:
    ih, hh, b, c = self.weights(layer)
    (r, z, n), (hr, hz, hn) = self.gates(x @ ih + b), self.gates(h @ hh + c)
    r, z = self.squash(r + hr), self.squash(z + hz)
    return self.mixed(z, jax.nn.relu(n + r * hn), h)


def _no_state_bias(self: Any, original: Any, layer: int) -> Any:
    ih, hh, b, c = original(layer)
    return ih, hh, b, jnp.zeros_like(c)


def _time_first(self: Any, original: Any, x: jax.Array) -> Any:
    y, h = original(x.swapaxes(0, 1))
    return y.swapaxes(0, 1), h


UNIT = "gru"

GRU = (
    gru("gates z, r, n", UNIT, "gate order", calling(UNIT, _picked(1, 0, 2), "gates")),
    gru("gates r, n, z", UNIT, "gate order", calling(UNIT, _picked(0, 2, 1), "gates")),
    gru(
        "z keeps the new",
        UNIT,
        None,
        calling(UNIT, lambda self, original, z, n, h: z * n + (1 - z) * h, "mixed"),
        also=("update gate", "gate order"),
    ),
    gru(
        "reset in front of the product",
        UNIT,
        None,
        calling(UNIT, _reset_before, "step"),
        also=("reset gate",),
    ),
    gru("reset without the bias", UNIT, None, calling(UNIT, _bias_outside, "step"), also=("bias", "gate bias")),
    gru("reset gate left out", UNIT, None, calling(UNIT, _without_reset, "step"), also=("reset gate",)),
    gru("ReLU for tanh", UNIT, "activation", calling(UNIT, _relu_inside, "step")),
    gru("hard sigmoid", UNIT, "activation", calling(UNIT, lambda self, original, x: _hard(x), "squash")),
    gru("bias of the state forgotten", UNIT, "bias", calling(UNIT, _no_state_bias, "weights"), also=("gate bias",)),
    gru("sequences for steps", UNIT, "axis order", calling(UNIT, _time_first)),
    gru(
        "state of the lower layer",
        "the model",
        None,
        calling("", lambda self, original, h: h[0], "last"),
        also=("token taken",),
    ),
    gru(
        "biases of the layers exchanged",
        UNIT,
        None,
        exchanged("gru.bias_hh_l0", "gru.bias_hh_l1"),
        "conversion",
        also=("bias", "gate bias"),
    ),
    gru(
        "update gate does not train",
        UNIT,
        None,
        calling(UNIT, lambda self, original, z, n, h: original(stop(z), n, h), "mixed"),
        "gradient",
        also=("gradient cut",),
    ),
)

RECURRENT_MISTAKES = (*LSTM, *GRU)
