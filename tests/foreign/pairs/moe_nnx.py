"""A transformer with a mixture of experts: PyTorch with a list of experts; NNX with the experts stacked, other names.

Shapes: B sequences, N tokens, D features, E experts, F features inside an expert, K classes.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import torch
import torch.nn.functional as F
from flax import nnx

from tests.foreign.pairs.common import Bug, ForeignPair, Side, array, dense, norm, normal, randomize

D, E, HIDDEN, TOP, K, N, DEPTH = 10, 4, 14, 2, 5, 7, 2


class Expert(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.act, self.w2 = torch.nn.Linear(D, HIDDEN), torch.nn.GELU(), torch.nn.Linear(HIDDEN, D)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w2(self.act(self.w1(x)))


class Router(torch.nn.Module):
    """The best experts of every token, and their weights, which sum to 1."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(D, E, bias=False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        probabilities = F.softmax(self.linear(x), dim=-1)
        weights, chosen = torch.topk(probabilities, TOP, dim=-1)
        return weights / weights.sum(-1, keepdim=True), chosen, probabilities


class MoE(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = Router(), torch.nn.ModuleList([Expert() for _ in range(E)])

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weights, chosen, probabilities = self.router(x)
        outputs = torch.stack([expert(x) for expert in self.experts], dim=-2)
        taken = torch.gather(outputs, -2, chosen.unsqueeze(-1).expand(*chosen.shape, D))
        used = F.one_hot(chosen, E).sum(-2).to(x.dtype).mean((0, 1))
        return (taken * weights.unsqueeze(-1)).sum(-2), E * (used * probabilities.mean((0, 1))).sum()


class MoEBlock(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.mix = torch.nn.LayerNorm(D), torch.nn.Linear(N, N)
        self.norm2, self.moe = torch.nn.LayerNorm(D), MoE()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = x + self.mix(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        y, balance = self.moe(self.norm2(x))
        return x + y, balance


class TorchMixture(torch.nn.Module):
    """(B, N, D) -> logits (B, K), balance of the routers ()."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList([MoEBlock() for _ in range(DEPTH)])
        self.head = torch.nn.Linear(D, K)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        losses = []
        for block in self.blocks:
            x, balance = block(x)
            losses.append(balance)
        return self.head(x.mean(1)), torch.stack(losses).mean()


class SparseMlp(nnx.Module):
    """All experts in four arrays; every token goes through all of them, and those not chosen count nothing."""

    def __init__(self, bug: str) -> None:
        self.bug = bug
        self.gate = nnx.Param(jnp.zeros((D, E)))
        self.up, self.up_bias = nnx.Param(jnp.zeros((E, D, HIDDEN))), nnx.Param(jnp.zeros((E, HIDDEN)))
        self.down, self.down_bias = nnx.Param(jnp.zeros((E, HIDDEN, D))), nnx.Param(jnp.zeros((E, D)))

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = x @ self.gate[...]
        axis = 1 if self.bug == "softmax_over_tokens" else 2
        probabilities = jax.nn.softmax(logits, axis)  # bug: softmax_over_tokens
        best, chosen = jax.lax.top_k(probabilities, TOP)
        total = 1.0 if self.bug == "not_normalized" else best.sum(-1, keepdims=True)
        hot = jax.nn.one_hot(chosen, E, dtype=x.dtype)
        hidden = jnp.einsum("bnd,edf->bnef", x, self.up[...]) + self.up_bias[...]
        hidden = jax.nn.silu(hidden) if self.bug == "silu" else jax.nn.gelu(hidden, approximate=False)  # bug: silu
        outputs = jnp.einsum("bnef,efd->bned", hidden, self.down[...]) + self.down_bias[...]
        y = jnp.einsum("bnke,bnk,bned->bnd", hot, best / total, outputs)  # bug: not_normalized
        return y, E * jnp.sum(hot.sum(2).mean((0, 1)) * probabilities.mean((0, 1)))


class Layer(nnx.Module):
    def __init__(self, bug: str, rngs: nnx.Rngs) -> None:
        self.before_tokens = nnx.LayerNorm(D, epsilon=1e-5, use_fast_variance=False, rngs=rngs)
        self.tokens = nnx.Linear(N, N, rngs=rngs)
        self.before_experts = nnx.LayerNorm(D, epsilon=1e-5, use_fast_variance=False, rngs=rngs)
        self.sparse = SparseMlp(bug)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = x + self.tokens(self.before_tokens(x).swapaxes(1, 2)).swapaxes(1, 2)
        y, balance = self.sparse(self.before_experts(x))
        return x + y, balance


class Mixture(nnx.Module):
    def __init__(self, bug: str = "", *, rngs: nnx.Rngs) -> None:
        self.stack = nnx.List([Layer(bug if i == 1 else "", rngs) for i in range(DEPTH)])
        self.classify = nnx.Linear(D, K, rngs=rngs)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        total = jnp.zeros((), x.dtype)
        for layer in self.stack:
            x, balance = layer(x)
            total = total + balance
        return self.classify(x.mean(1)), total / DEPTH


def converted(model: Any, bug: str) -> Mixture:
    port = Mixture(bug, rngs=nnx.Rngs(0))
    for layer, block in zip(port.stack, model.blocks, strict=True):
        experts, sparse = block.moe.experts, layer.sparse
        nnx.update(layer.before_tokens, norm(block.norm1))
        nnx.update(layer.before_experts, norm(block.norm2))
        nnx.update(layer.tokens, dense(block.mix))
        sparse.gate[...] = jnp.asarray(array(block.moe.router.linear.weight).T)
        sparse.up[...] = jnp.stack([array(expert.w1.weight).T for expert in experts])
        sparse.up_bias[...] = jnp.stack([array(expert.w1.bias) for expert in experts])
        sparse.down[...] = jnp.stack([array(expert.w2.weight).T for expert in experts])
        sparse.down_bias[...] = jnp.stack([array(expert.w2.bias) for expert in experts])
    nnx.update(port.classify, dense(model.head))
    return port


PAIR = ForeignPair(
    name="moe_nnx",
    file=__file__,
    torch_model=lambda seed: randomize(TorchMixture(), seed),
    jax_side=lambda model, bug: Side("nnx", converted(model, bug)),
    inputs=lambda seed: (normal(seed, 3, N, D),),
    bugs={
        "softmax_over_tokens": Bug(("blocks.1.moe.router",)),
        "not_normalized": Bug(("blocks.1.moe.router",)),
        # The port runs every expert on every token, so that the results of `act` are not among its values.
        "silu": Bug(tuple(f"blocks.1.moe.experts.{i}.{name}" for i in range(E) for name in ("act", "w2"))),
    },
)
