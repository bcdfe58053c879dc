"""A forecaster of two GRU layers with LayerNorm between: `torch.nn.GRU`; JAX as functions with `lax.scan` over time.

Shapes: B series, T steps, D features, S features of the state.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import torch

from tests.foreign.pairs.common import Bug, ForeignPair, Side, array, normal, randomize

D, S, T, AHEAD = 5, 8, 6, 3


class RecurrentBlock(torch.nn.Module):
    def __init__(self, inside: int) -> None:
        super().__init__()
        self.gru, self.norm = torch.nn.GRU(inside, S, batch_first=True), torch.nn.LayerNorm(S)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.gru(x)[0])


class TorchForecaster(torch.nn.Module):
    """(B, T, D) -> (B, AHEAD)."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList([RecurrentBlock(D), RecurrentBlock(S)])
        self.head = torch.nn.Sequential(torch.nn.Linear(S, 2 * S), torch.nn.ELU(), torch.nn.Linear(2 * S, AHEAD))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, -1])


Params = dict[str, Any]


def gru(p: Params, xs: jax.Array, bug: str) -> jax.Array:
    """(B, T, D) -> (B, T, S)."""

    un, cn = p["un"], p["cn"]

    def step(h: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        xr, xz, xn = jnp.split(x @ p["w"] + p["b"], 3, axis=1)
        r = jax.nn.sigmoid(xr + h @ p["ur"] + p["cr"])
        z = jax.nn.sigmoid(xz + h @ p["uz"] + p["cz"])
        inner = (r * h) @ un + cn if bug == "reset_before" else r * (h @ un + cn)  # bug: reset_before
        n = jnp.tanh(xn + inner)
        h = z * n + (1 - z) * h if bug == "update_swapped" else (1 - z) * n + z * h  # bug: update_swapped
        return h, h

    start = jnp.zeros((xs.shape[0], S), xs.dtype)
    return jax.lax.scan(step, start, xs.swapaxes(0, 1))[1].swapaxes(0, 1)


def layer_norm(p: Params, x: jax.Array, bug: str) -> jax.Array:
    x = x - x.mean(-1, keepdims=True)
    x = x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + (1e-3 if bug == "norm_eps" else 1e-5))  # bug: norm_eps
    return x * p["scale"] + p["shift"]


def forecast(params: Params, x: jax.Array, *, bug: str = "") -> jax.Array:
    x = layer_norm(params["norm1"], gru(params["gru1"], x, ""), "")
    x = layer_norm(params["norm2"], gru(params["gru2"], x, bug), bug)
    h = jax.nn.elu(x[:, -1] @ params["hidden"]["w"] + params["hidden"]["b"])
    return h @ params["out"]["w"] + params["out"]["b"]


def converted(model: Any) -> Params:
    def cell(layer: Any) -> Params:
        matrices, biases = array(layer.weight_hh_l0).reshape(3, S, S), array(layer.bias_hh_l0).reshape(3, S)
        p = {"w": array(layer.weight_ih_l0).T, "b": array(layer.bias_ih_l0)}
        p |= {f"u{gate}": matrices[i].T for i, gate in enumerate("rzn")}
        return p | {f"c{gate}": biases[i] for i, gate in enumerate("rzn")}

    def linear(layer: Any) -> Params:
        return {"w": array(layer.weight).T, "b": array(layer.bias)}

    def norm(layer: Any) -> Params:
        return {"scale": array(layer.weight), "shift": array(layer.bias)}

    params = {"hidden": linear(model.head[0]), "out": linear(model.head[2])}
    for i, block in enumerate(model.blocks, 1):
        params |= {f"gru{i}": cell(block.gru), f"norm{i}": norm(block.norm)}
    return jax.tree.map(jnp.asarray, params)


PAIR = ForeignPair(
    name="gru_function",
    file=__file__,
    torch_model=lambda seed: randomize(TorchForecaster(), seed),
    jax_side=lambda model, bug: Side("function", functools.partial(forecast, bug=bug), converted(model)),
    inputs=lambda seed: (normal(seed, 3, T, D),),
    bugs={
        "reset_before": Bug(("blocks.1.gru",)),
        "update_swapped": Bug(("blocks.1.gru",)),
        "norm_eps": Bug(("blocks.1.norm",)),
    },
)
