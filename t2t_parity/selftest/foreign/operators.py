"""Spectral block with complex weights, and graph convolution.

Shapes: B signals of T samples, C channels, M modes; G nodes with D features.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from flax import nnx

from t2t_parity.selftest.foreign.architecture import Architecture, Inputs, normal

C, T, M = 4, 8, 3
D, G = 8, 6


# ---- spectral block ----


class TorchMixing(torch.nn.Module):
    """Mix the channels of the lowest M modes of a spectrum; (B, C, T/2 + 1) complex -> (B, C, M) complex."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(C, C, M, dtype=torch.complex64))

    def forward(self, spectrum: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bim,iom->bom", spectrum[..., :M], self.weight)


class TorchSpectral(torch.nn.Module):
    """Mix channels per mode and per sample; (B, C, T) -> (B, C, T), and the mixed modes (complex)."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.local = TorchMixing(), torch.nn.Conv1d(C, C, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        modes = self.mix(torch.fft.rfft(x))
        y = torch.fft.irfft(F.pad(modes, (0, T // 2 + 1 - M)), n=T)
        return F.gelu(y + self.local(x)), modes


class Mixing(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.weight = nnx.Param(jnp.zeros((C, C, M), jnp.complex64))

    def factor(self) -> jax.Array:
        return self.weight[...]

    def lowest(self, spectrum: jax.Array) -> jax.Array:
        return spectrum[..., :M]

    def __call__(self, spectrum: jax.Array) -> jax.Array:
        return jnp.einsum("bim,iom->bom", self.lowest(spectrum), self.factor())


class Spectral(nnx.Module):
    """Twin of `TorchSpectral`; input and output are (B, C, T)."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.mix, self.local = Mixing(rngs), nnx.Conv(C, C, (1,), rngs=rngs)

    def spectrum(self, x: jax.Array) -> jax.Array:
        return jnp.fft.rfft(x)

    def signal(self, modes: jax.Array) -> jax.Array:
        return jnp.fft.irfft(jnp.pad(modes, ((0, 0), (0, 0), (0, T // 2 + 1 - M))), n=T)

    def spectra(self, modes: jax.Array) -> jax.Array:
        """Return the output modes."""
        return modes

    def act(self, x: jax.Array) -> jax.Array:
        return jax.nn.gelu(x, approximate=False)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        modes = self.mix(self.spectrum(x))
        local = self.local(x.swapaxes(1, 2)).swapaxes(1, 2)
        return self.act(self.signal(modes) + local), self.spectra(modes)


# ---- graph convolution ----


class TorchGraphConv(torch.nn.Module):
    """S X W + b, where S is the adjacency with self-loops divided by the roots of the degrees of both nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = torch.nn.Parameter(torch.zeros(D, D)), torch.nn.Parameter(torch.zeros(D))

    def forward(self, x: torch.Tensor, adjacency: torch.Tensor) -> torch.Tensor:
        a = adjacency + torch.eye(len(adjacency)).to(adjacency)
        s = a * a.sum(1).rsqrt()[:, None] * a.sum(0).rsqrt()[None]
        return s @ (x @ self.weight) + self.bias


class TorchGraph(torch.nn.Module):
    """Two graph convolutions and a sum over the nodes; (G, D), (G, G) -> (1, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.gc1, self.gc2, self.head = TorchGraphConv(), TorchGraphConv(), torch.nn.Linear(D, 5)

    def forward(self, x: torch.Tensor, adjacency: torch.Tensor) -> torch.Tensor:
        x = F.elu(self.gc1(x, adjacency))
        return self.head(self.gc2(x, adjacency).sum(0, keepdim=True))


class GraphConv(nnx.Module):
    """Twin of `TorchGraphConv`."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.weight, self.bias = nnx.Param(jnp.zeros((D, D))), nnx.Param(jnp.zeros(D))

    def looped(self, adjacency: jax.Array) -> jax.Array:
        return adjacency + jnp.eye(len(adjacency), dtype=adjacency.dtype)

    def degrees(self, a: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the degrees of the rows (G, 1) and of the columns (1, G)."""
        return a.sum(1, keepdims=True), a.sum(0, keepdims=True)

    def normed(self, adjacency: jax.Array) -> jax.Array:
        a = self.looped(adjacency)
        rows, columns = self.degrees(a)
        return a / jnp.sqrt(rows) / jnp.sqrt(columns)

    def __call__(self, x: jax.Array, adjacency: jax.Array) -> jax.Array:
        return self.normed(adjacency) @ (x @ self.weight[...]) + self.bias[...][None]


class Graph(nnx.Module):
    """Twin of `TorchGraph`."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.gc1, self.gc2, self.head = GraphConv(rngs), GraphConv(rngs), nnx.Linear(D, 5, rngs=rngs)

    def act(self, x: jax.Array) -> jax.Array:
        return jax.nn.elu(x)

    def readout(self, x: jax.Array) -> jax.Array:
        return x.sum(0, keepdims=True)

    def __call__(self, x: jax.Array, adjacency: jax.Array) -> jax.Array:
        x = self.act(self.gc1(x, adjacency))
        return self.head(self.readout(self.gc2(x, adjacency)))


def _graph(draw: np.random.RandomState) -> Inputs:
    """Draw features, and weights of directed edges, about half of them zero."""
    edges = draw.random_sample((G, G)) * (draw.random_sample((G, G)) < 0.5)
    return draw.standard_normal((G, D)), edges * (1 - np.eye(G))


OPERATORS = {
    "spectral": Architecture(TorchSpectral, Spectral, normal(2, C, T)),
    "graph": Architecture(TorchGraph, Graph, _graph),
}
