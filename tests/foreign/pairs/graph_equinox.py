"""A graph convolution network: PyTorch with `index_add`; Equinox with segment sums, given the whole graph.

Shapes: G nodes, L edges, D features, K classes.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import torch

from tests.foreign.pairs.common import Bug, ForeignPair, Side, array, normal, randomize

G, D, WIDTHS, K = 9, 5, (8, 6), 4


class GCNConv(torch.nn.Module):
    """Kipf and Welling: neighbours and the node itself, divided by the roots of both degrees."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.lin, self.bias = torch.nn.Linear(inside, outside, bias=False), torch.nn.Parameter(torch.zeros(outside))

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        loops = torch.arange(x.shape[0])
        source, target = torch.cat([edge_index, torch.stack([loops, loops])], dim=1)
        degree = x.new_zeros(x.shape[0]).index_add(0, target, x.new_ones(target.shape[0]))
        inverse_root = degree.pow(-0.5)
        weight = inverse_root[source] * inverse_root[target]
        messages = self.lin(x)[source] * weight[:, None]
        return messages.new_zeros(x.shape[0], messages.shape[1]).index_add(0, target, messages) + self.bias


class Readout(torch.nn.Module):
    """The nodes' mean and maximum to logits."""

    def __init__(self, inside: int) -> None:
        super().__init__()
        self.lin = torch.nn.Linear(2 * inside, K)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lin(torch.cat([x.mean(0), x.amax(0)]))


class TorchGCN(torch.nn.Module):
    """Nodes (G, D), edges (2, L) -> logits of the graph (K), features of the nodes (G, WIDTHS[-1])."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = GCNConv(D, WIDTHS[0]), GCNConv(*WIDTHS)
        self.act, self.readout = torch.nn.Softplus(), Readout(WIDTHS[1])

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.act(self.conv1(x, edge_index))
        x = self.conv2(x, edge_index)
        return self.readout(x), x


class Convolution(eqx.Module):
    """Degrees count the node itself; its own message is added apart."""

    w: jax.Array
    b: jax.Array
    bug: str = eqx.field(static=True)

    def __call__(self, x: jax.Array, senders: jax.Array, receivers: jax.Array) -> jax.Array:
        nodes = x.shape[0]
        h = x @ self.w
        degree = 1 + jax.ops.segment_sum(jnp.ones(receivers.shape, x.dtype), receivers, nodes)
        if self.bug == "edges_reversed":
            senders, receivers = receivers, senders
        root = degree ** (0.0 if self.bug == "sources_not_normalized" else -0.5)  # bug: sources_not_normalized
        h = h * root[:, None]
        total = h + jax.ops.segment_sum(h[senders], receivers, nodes)  # bug: edges_reversed
        return total * degree[:, None] ** -0.5 + self.b


class GCN(eqx.Module):
    first: Convolution
    second: Convolution
    head: eqx.nn.Linear
    bug: str = eqx.field(static=True)

    def __call__(self, x: jax.Array, edge_index: jax.Array) -> tuple[jax.Array, jax.Array]:
        senders, receivers = edge_index
        x = jax.nn.softplus(self.first(x, senders, receivers))
        x = self.second(x, senders, receivers)
        nodes = 1 if self.bug == "sum_pool" else x.shape[0]
        return self.head(jnp.concatenate([x.sum(0) / nodes, x.max(0)])), x  # bug: sum_pool


def converted(model: Any, bug: str) -> GCN:
    def convolution(layer: Any, bug: str) -> Convolution:
        return Convolution(jnp.asarray(array(layer.lin.weight).T), jnp.asarray(array(layer.bias)), bug)

    head = eqx.nn.Linear(2 * WIDTHS[1], K, key=jax.random.key(0))
    new = (jnp.asarray(array(model.readout.lin.weight)), jnp.asarray(array(model.readout.lin.bias)))
    head = eqx.tree_at(lambda layer: (layer.weight, layer.bias), head, new)
    return GCN(convolution(model.conv1, ""), convolution(model.conv2, bug), head, bug)


def inputs(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A directed graph in which degrees differ, and no edge comes twice."""
    pairs = [(i, j) for i in range(G) for j in range(G) if i != j]
    chosen = np.random.RandomState(seed).choice(len(pairs), 2 * G, replace=False)
    return normal(seed, G, D), np.array(pairs)[chosen].T.copy()


PAIR = ForeignPair(
    name="graph_equinox",
    file=__file__,
    torch_model=lambda seed: randomize(TorchGCN(), seed),
    jax_side=lambda model, bug: Side("equinox", converted(model, bug), batched=True),
    inputs=inputs,
    bugs={
        "sources_not_normalized": Bug(("conv2",)),
        "edges_reversed": Bug(("conv2",)),
        "sum_pool": Bug(("readout",)),
    },
)
