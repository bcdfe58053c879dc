"""Recurrent networks, with the cells written out in JAX and the weights in PyTorch's layout.

Shapes: B sequences, T steps, D input features, S features of the state.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import torch
from flax import nnx

from t2t_parity.selftest.foreign.architecture import Architecture, normal

D, S, T = 8, 8, 4


class TorchLSTMTagger(torch.nn.Module):
    """Bidirectional LSTM; (B, T, D) -> (B, T, 5) from every step, (B, 5) from the last states."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(D, S, batch_first=True, bidirectional=True)
        self.head = torch.nn.Linear(2 * S, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y, (h, _) = self.lstm(x)
        return self.head(y), self.head(torch.cat((h[0], h[1]), -1))


class LSTM(nnx.Module):
    """Bidirectional layer as `torch.nn.LSTM`: gates i, f, g, o; two biases; (B, T, D) -> (B, T, 2 S)."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        for end in ("", "_reverse"):
            setattr(self, f"weight_ih_l0{end}", nnx.Param(jnp.zeros((4 * S, D))))
            setattr(self, f"weight_hh_l0{end}", nnx.Param(jnp.zeros((4 * S, S))))
            setattr(self, f"bias_ih_l0{end}", nnx.Param(jnp.zeros(4 * S)))
            setattr(self, f"bias_hh_l0{end}", nnx.Param(jnp.zeros(4 * S)))

    def projected(self, x: jax.Array, h: jax.Array, end: str) -> jax.Array:
        """Return the pre-activations of the gates; (B, D), (B, S) -> (B, 4 S)."""
        ih, hh, b, c = (
            getattr(self, f"{name}_l0{end}")[...] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        return x @ ih.T + b[None] + h @ hh.T + c[None]

    def gates(self, z: jax.Array) -> list[jax.Array]:
        """Split (B, 4 S) into the pre-activations of i, f, g, o."""
        return jnp.split(z, 4, axis=-1)

    def step(self, z: jax.Array, c: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the next h and c."""
        i, f, g, o = self.gates(z)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(o) * jnp.tanh(c), c

    def carried(self, h: jax.Array) -> jax.Array:
        """Return the state passed to the next step."""
        return h

    def along(self, x: jax.Array, end: str) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return all h (B, T, S), and the last h and c."""
        h = c = jnp.zeros((x.shape[0], S), x.dtype)
        found = []
        for t in range(x.shape[1]):
            h, c = self.step(self.projected(x[:, t], self.carried(h), end), c)
            found.append(h)
        return jnp.stack(found, 1), h, c

    def backwards(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        y, h, c = self.along(x[:, ::-1], "_reverse")
        return y[:, ::-1], h, c

    def joined(self, forth: jax.Array, back: jax.Array) -> jax.Array:
        return jnp.concatenate((forth, back), -1)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        forth, back = self.along(x, ""), self.backwards(x)
        return self.joined(forth[0], back[0]), (jnp.stack((forth[1], back[1])), jnp.stack((forth[2], back[2])))


class LSTMTagger(nnx.Module):
    """Twin of `TorchLSTMTagger`."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.lstm, self.head = LSTM(rngs), nnx.Linear(2 * S, 5, rngs=rngs)

    def last(self, y: jax.Array, h: jax.Array) -> jax.Array:
        return jnp.concatenate((h[0], h[1]), -1)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        y, (h, _) = self.lstm(x)
        return self.head(y), self.head(self.last(y, h))


class TorchGRUClassifier(torch.nn.Module):
    """Two GRU layers; (B, T, D) -> (B, 5) from the last state of the upper layer."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = torch.nn.GRU(D, S, num_layers=2, batch_first=True)
        self.head = torch.nn.Linear(S, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, h = self.gru(x)
        return self.head(h[-1])


class GRU(nnx.Module):
    """Two layers as `torch.nn.GRU`: gates r, z, n; reset applied after the product; (B, T, D) -> (B, T, S)."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        for layer, width in enumerate((D, S)):
            setattr(self, f"weight_ih_l{layer}", nnx.Param(jnp.zeros((3 * S, width))))
            setattr(self, f"weight_hh_l{layer}", nnx.Param(jnp.zeros((3 * S, S))))
            setattr(self, f"bias_ih_l{layer}", nnx.Param(jnp.zeros(3 * S)))
            setattr(self, f"bias_hh_l{layer}", nnx.Param(jnp.zeros(3 * S)))

    def weights(self, layer: int) -> tuple[jax.Array, ...]:
        """Return the weights of the input (D, 3 S) and of the state (S, 3 S), and their biases (1, 3 S)."""
        ih, hh = (getattr(self, f"{name}_l{layer}")[...].T for name in ("weight_ih", "weight_hh"))
        b, c = (getattr(self, f"{name}_l{layer}")[...][None] for name in ("bias_ih", "bias_hh"))
        return ih, hh, b, c

    def gates(self, z: jax.Array) -> list[jax.Array]:
        """Split (B, 3 S) into the parts of r, z, n."""
        return jnp.split(z, 3, axis=-1)

    def squash(self, x: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(x)

    def mixed(self, z: jax.Array, n: jax.Array, h: jax.Array) -> jax.Array:
        return (1 - z) * n + z * h

    def step(self, layer: int, x: jax.Array, h: jax.Array) -> jax.Array:
        ih, hh, b, c = self.weights(layer)
        (r, z, n), (hr, hz, hn) = self.gates(x @ ih + b), self.gates(h @ hh + c)
        r, z = self.squash(r + hr), self.squash(z + hz)
        return self.mixed(z, jnp.tanh(n + r * hn), h)

    def along(self, layer: int, x: jax.Array) -> jax.Array:
        """Run one layer; (B, T, D or S) -> (B, T, S)."""
        h = jnp.zeros((x.shape[0], S), x.dtype)
        found = []
        for t in range(x.shape[1]):
            h = self.step(layer, x[:, t], h)
            found.append(h)
        return jnp.stack(found, 1)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        lower = self.along(0, x)
        upper = self.along(1, lower)
        return upper, jnp.stack((lower[:, -1], upper[:, -1]))


class GRUClassifier(nnx.Module):
    """Twin of `TorchGRUClassifier`."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.gru, self.head = GRU(rngs), nnx.Linear(S, 5, rngs=rngs)

    def last(self, h: jax.Array) -> jax.Array:
        return h[-1]

    def __call__(self, x: jax.Array) -> jax.Array:
        _, h = self.gru(x)
        return self.head(self.last(h))


RECURRENT = {
    "lstm": Architecture(TorchLSTMTagger, LSTMTagger, normal(3, T, D)),
    "gru": Architecture(TorchGRUClassifier, GRUClassifier, normal(T, T, D)),
}
