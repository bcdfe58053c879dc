"""Mixture of experts, variational autoencoder with named outputs, dueling head, and policy.

Shapes: B examples, N tokens, D features, E experts, A actions.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from flax import nnx

from t2t_parity.selftest.foreign.architecture import Architecture, Inputs, channels_first, normal

D, E, A, N = 8, 4, 6, 5
ILLEGAL = -1e9


# ---- mixture of experts ----


def sinusoid(length: int, width: int, period: float = 10000.0) -> np.ndarray:
    """Return a table (1, length, width) with sines at even and cosines at odd indices."""
    angle = np.arange(length)[:, None] * period ** (-np.arange(0, width, 2) / width)[None]
    return np.stack((np.sin(angle), np.cos(angle)), -1).reshape(1, length, width)


class TorchMoE(torch.nn.Module):
    """Mixture of the top 2 experts; (B, N, D) -> (B, N, D), and the load balance of the router."""

    def __init__(self) -> None:
        super().__init__()
        self.router = torch.nn.Linear(D, E, bias=False)
        self.w1 = torch.nn.Parameter(torch.zeros(E, D, 2 * D))
        self.w2 = torch.nn.Parameter(torch.zeros(E, 2 * D, D))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        probability = self.router(x).softmax(-1)
        best, chosen = probability.topk(2, dim=-1)
        gate = torch.zeros_like(probability).scatter(-1, chosen, best / best.sum(-1, keepdim=True))
        y = torch.einsum("bneh,ehd->bned", F.gelu(torch.einsum("bnd,edh->bneh", x, self.w1)), self.w2)
        balance = E * ((gate > 0).to(x).mean((0, 1)) * probability.mean((0, 1))).sum()
        return (y * gate[..., None]).sum(2), balance


class TorchSwitch(torch.nn.Module):
    """Sinusoidal positions and a block with a mixture of experts; (B, N, D) -> (B, N, D), ()."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.moe = torch.nn.LayerNorm(D), TorchMoE()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = x + torch.from_numpy(sinusoid(x.shape[1], D)).to(x)
        y, balance = self.moe(self.norm(x))
        return x + y, balance


class MoE(nnx.Module):
    """Twin of `TorchMoE`."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.router = nnx.Linear(D, E, use_bias=False, rngs=rngs)
        self.w1, self.w2 = nnx.Param(jnp.zeros((E, D, 2 * D))), nnx.Param(jnp.zeros((E, 2 * D, D)))

    def probability(self, logits: jax.Array) -> jax.Array:
        return jax.nn.softmax(logits, axis=-1)

    def gates(self, probability: jax.Array) -> jax.Array:
        """Return (B, N, E): weights of the top 2 experts, which sum to 1, and zeros."""
        best, chosen = jax.lax.top_k(probability, 2)
        best = best / best.sum(-1, keepdims=True)
        return (best[..., None] * jax.nn.one_hot(chosen, E, dtype=best.dtype)).sum(-2)

    def act(self, x: jax.Array) -> jax.Array:
        return jax.nn.gelu(x, approximate=False)

    def experts(self, x: jax.Array) -> jax.Array:
        """Apply all experts; (B, N, D) -> (B, N, E, D)."""
        return jnp.einsum("bneh,ehd->bned", self.act(jnp.einsum("bnd,edh->bneh", x, self.w1[...])), self.w2[...])

    def mixed(self, x: jax.Array, gate: jax.Array) -> jax.Array:
        return (self.experts(x) * gate[..., None]).sum(2)

    def balance(self, gate: jax.Array, probability: jax.Array) -> jax.Array:
        return E * ((gate > 0).astype(gate.dtype).mean((0, 1)) * probability.mean((0, 1))).sum()

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        probability = self.probability(self.router(x))
        gate = self.gates(probability)
        return self.mixed(x, gate), self.balance(gate, probability)


class Switch(nnx.Module):
    """Twin of `TorchSwitch`."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm = nnx.LayerNorm(D, epsilon=1e-5, use_fast_variance=False, rngs=rngs)
        self.moe = MoE(rngs)

    def positions(self, length: int) -> np.ndarray:
        return sinusoid(length, D)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = x + jnp.asarray(self.positions(x.shape[1]), x.dtype)
        y, balance = self.moe(self.norm(x))
        return x + y, balance


# ---- variational autoencoder ----


class TorchVAE(torch.nn.Module):
    """Autoencoder at the mean of its posterior; (B, 2, 4, 6) -> reconstruction, mean and log variance (B, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = torch.nn.Conv2d(2, D, 3, stride=2, padding=1), torch.nn.Linear(6 * D, D)
        self.mean, self.log_variance = torch.nn.Linear(D, 4), torch.nn.Linear(D, 4)
        self.decode, self.out = torch.nn.Linear(4, 6 * D), torch.nn.Conv2d(D // 4, 2, 1)

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        h = F.softplus(self.fc(F.relu(self.conv(x)).flatten(1)))
        mean, log_variance = self.mean(h), self.log_variance(h).clamp(-0.2, 0.2)
        y = torch.sigmoid(self.out(self.decode(mean).unflatten(1, (D // 4, 4, 6))))
        return {"reconstruction": y, "posterior": {"mean": mean, "log_variance": log_variance}}


class VAE(nnx.Module):
    """Twin of `TorchVAE`; the input is (B, 4, 6, 2), the output image has PyTorch's layout."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(2, D, (3, 3), strides=2, padding=1, rngs=rngs)
        self.fc, self.decode = nnx.Linear(6 * D, D, rngs=rngs), nnx.Linear(4, 6 * D, rngs=rngs)
        self.mean, self.log_variance = nnx.Linear(D, 4, rngs=rngs), nnx.Linear(D, 4, rngs=rngs)
        self.out = nnx.Conv(D // 4, 2, (1, 1), rngs=rngs)

    def flat(self, x: jax.Array) -> jax.Array:
        """Flatten (B, h, w, C) to (B, C h w), in PyTorch's order."""
        return channels_first(x).reshape(x.shape[0], -1)

    def unflat(self, x: jax.Array) -> jax.Array:
        """Reshape (B, C h w) to (B, h, w, C)."""
        return jnp.moveaxis(x.reshape(-1, D // 4, 4, 6), 1, -1)

    def clamped(self, x: jax.Array) -> jax.Array:
        return x.clip(-0.2, 0.2)

    def latent(self, mean: jax.Array, log_variance: jax.Array) -> jax.Array:
        return mean

    def squashed(self, x: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(x)

    def outputs(self, y: jax.Array, mean: jax.Array, log_variance: jax.Array) -> Any:
        return {"reconstruction": y, "posterior": {"mean": mean, "log_variance": log_variance}}

    def __call__(self, x: jax.Array) -> Any:
        h = jax.nn.softplus(self.fc(self.flat(jax.nn.relu(self.conv(x)))))
        mean, log_variance = self.mean(h), self.clamped(self.log_variance(h))
        y = self.squashed(self.out(self.unflat(self.decode(self.latent(mean, log_variance)))))
        return self.outputs(channels_first(y), mean, log_variance)


# ---- dueling head ----


class TorchDueling(torch.nn.Module):
    """Dueling head, value + advantage - mean(advantage); (B, D) -> (B, A)."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.value = torch.nn.Linear(D, D), torch.nn.Linear(D, 1)
        self.advantage = torch.nn.Linear(D, A)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.leaky_relu(self.body(x), 0.01)
        advantage = self.advantage(x)
        return self.value(x) + advantage - advantage.mean(1, keepdim=True)


class Dueling(nnx.Module):
    """Twin of `TorchDueling`."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.body, self.value = nnx.Linear(D, D, rngs=rngs), nnx.Linear(D, 1, rngs=rngs)
        self.advantage = nnx.Linear(D, A, rngs=rngs)

    def act(self, x: jax.Array) -> jax.Array:
        return jax.nn.leaky_relu(x, 0.01)

    def centre(self, advantage: jax.Array) -> jax.Array:
        return advantage.mean(1, keepdims=True)

    def joined(self, value: jax.Array, advantage: jax.Array) -> jax.Array:
        return value + advantage - self.centre(advantage)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.act(self.body(x))
        return self.joined(self.value(x), self.advantage(x))


# ---- policy with illegal moves ----


class TorchPolicy(torch.nn.Module):
    """Logits plus a prior of the actions, with illegal ones set to -1e9; (B, D), (B, A) -> (B, A)."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.prior = torch.nn.Linear(D, A), torch.nn.Parameter(torch.zeros(A))

    def forward(self, x: torch.Tensor, legal: torch.Tensor) -> torch.Tensor:
        return (self.body(x) + self.prior).masked_fill(legal == 0, ILLEGAL)


class Policy(nnx.Module):
    """Twin of `TorchPolicy`."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.body, self.prior = nnx.Linear(D, A, rngs=rngs), nnx.Param(jnp.zeros(A))

    def known(self) -> jax.Array:
        return self.prior[...][None]

    def masked(self, logits: jax.Array, legal: jax.Array) -> jax.Array:
        return jnp.where(legal == 0, ILLEGAL, logits)

    def __call__(self, x: jax.Array, legal: jax.Array) -> jax.Array:
        return self.masked(self.body(x) + self.known(), legal)


def _moves(draw: np.random.RandomState) -> Inputs:
    """Draw positions and masks of legal moves: all are legal in the first position, some in the others."""
    legal = (np.arange(A)[None] <= np.array([A, 2, 3])[:, None]).astype(np.int64)
    return draw.standard_normal((3, D)), legal


MIXTURES = {
    "switch": Architecture(TorchSwitch, Switch, normal(2, N, D)),
    "vae": Architecture(TorchVAE, VAE, normal(2, 2, 4, 6)),
    "dueling": Architecture(TorchDueling, Dueling, normal(3, D)),
    "policy": Architecture(TorchPolicy, Policy, _moves),
}
