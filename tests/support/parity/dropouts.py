"""Pairs of small models with one dropout in many spellings, and their proof in training mode."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from jax.random import bernoulli
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from parity import Rules, torch_to_jax
from parity.measure.gates import Gates, Row
from parity.proof.stages import Proof
from parity.report.findings import Cause
from parity.runs.losses import Loss

X = np.random.RandomState(0).standard_normal((3, 5, 8))


class Ours(torch.nn.Module):
    """Two projections of tokens (B, N, 8) and what `body` does with them."""

    def __init__(self, body: Callable[[Any, torch.Tensor], Any], **parts: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.fc2, self.body = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8), body
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: torch.Tensor) -> Any:
        return self.body(self, x)


class Theirs(nnx.Module):
    def __init__(self, body: Callable[[Any, jax.Array], Any], **parts: Callable[[nnx.Rngs], Any]) -> None:
        self.rngs = nnx.Rngs(0)
        self.fc1, self.fc2 = nnx.Linear(8, 8, rngs=self.rngs), nnx.Linear(8, 8, rngs=self.rngs)
        self.body, self.deterministic = body, False
        for name, part in parts.items():
            setattr(self, name, part(self.rngs))

    def __call__(self, x: jax.Array) -> Any:
        return self.body(self, x)


SQUARES = Loss("sum of squares", lambda y: (y * y).sum(), lambda y: (y * y).sum())
"""Terms of one sign do not cancel."""


def drop(rate: float, *shared: int) -> Callable[[nnx.Rngs], nnx.Dropout]:
    return lambda rngs: nnx.Dropout(rate, broadcast_dims=shared, rngs=rngs)


def training(
    ours: torch.nn.Module, theirs: nnx.Module, x: np.ndarray = X, rules: Rules | None = None
) -> tuple[list[Row], tuple[Cause, ...]]:
    torch_to_jax(ours, theirs, rules=rules)
    return Proof.of(ours, theirs, x, rules or Rules(), Gates()).training(SQUARES)


def failures(*args: Any) -> list[Row]:
    rows, _ = training(*args)
    assert {"loss", "gradient"} <= {row.kind for row in rows} or any(row.kind == "structure" for row in rows)
    return [row for row in rows if not row.passed]


# ---- one dropout between two projections, in many spellings ----


def by_hand(x: torch.Tensor, keep: float) -> torch.Tensor:
    return x * torch.bernoulli(torch.full_like(x, keep)) / keep


def floored(x: torch.Tensor, keep: float) -> torch.Tensor:
    return x / keep * (keep + torch.rand(x.shape, dtype=x.dtype)).floor()


def in_place(x: torch.Tensor, keep: float) -> torch.Tensor:
    return x * x.new_empty(x.shape).bernoulli_(keep).div_(keep)


def between(dropped: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """fc2(dropout(fc1(x)))."""
    return lambda m, x: m.fc2(dropped(m, m.fc1(x)))


def only_training(dropped: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return between(lambda m, x: dropped(m, x) if m.training else x)


def unless_deterministic(dropped: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return between(lambda m, x: x if m.deterministic else dropped(m, x))


TORCH: dict[str, Callable[[float], Ours]] = {
    "module": lambda p: Ours(between(lambda m, x: m.drop(x)), drop=torch.nn.Dropout(p)),
    "functional": lambda p: Ours(between(lambda m, x: F.dropout(x, p, m.training))),
    "inplace": lambda p: Ours(between(lambda m, x: F.dropout(x.clone(), p, m.training, inplace=True))),
    "bernoulli": lambda p: Ours(only_training(lambda m, x: by_hand(x, 1 - p))),
    "floor": lambda p: Ours(only_training(lambda m, x: floored(x, 1 - p))),
    "new_empty": lambda p: Ours(only_training(lambda m, x: in_place(x, 1 - p))),
    "checkpoint": lambda p: Ours(
        between(lambda m, x: checkpoint(lambda y: F.dropout(y.sin(), p, m.training).sin(), x, use_reentrant=False))
    ),
}


@functools.partial(jax.jit, static_argnums=2)
def compiled_drop(key: jax.Array, x: jax.Array, keep: float) -> jax.Array:
    return jnp.where(jax.random.bernoulli(key, keep, x.shape), x / keep, 0)


JAX: dict[str, Callable[[float], Theirs]] = {
    "module": lambda p: Theirs(between(lambda m, x: m.drop(x)), drop=drop(p)),
    "another name": lambda p: Theirs(between(lambda m, x: m.other(x)), other=drop(p)),
    "rngs at call": lambda p: Theirs(between(lambda m, x: m.drop(x, rngs=m.rngs)), drop=lambda rngs: nnx.Dropout(p)),
    "no rngs": lambda p: Theirs(between(lambda m, x: m.drop(x)), drop=lambda rngs: nnx.Dropout(p)),
    "jax.random": lambda p: Theirs(unless_deterministic(lambda m, x: compiled_drop(m.rngs.dropout(), x, 1 - p))),
    "imported": lambda p: Theirs(
        unless_deterministic(lambda m, x: x * bernoulli(m.rngs.dropout(), 1 - p, x.shape) / (1 - p))
    ),
    "method": lambda p: Theirs(
        unless_deterministic(lambda m, x: x * m.rngs.dropout.bernoulli(1 - p, x.shape) / (1 - p))
    ),
    "what is dropped": lambda p: Theirs(
        unless_deterministic(lambda m, x: jnp.where(m.rngs.dropout.bernoulli(p, x.shape), 0, x / (1 - p)))
    ),
    "uniform": lambda p: Theirs(
        unless_deterministic(
            lambda m, x: jnp.where(jax.random.uniform(m.rngs.dropout(), x.shape) < 1 - p, x / (1 - p), 0)
        )
    ),
    "remat": lambda p: Theirs(
        between(lambda m, x: jax.checkpoint(lambda y: jnp.sin(m.drop(jnp.sin(y))))(x)),
        drop=lambda rngs: nnx.Dropout(p),
    ),
}


class TorchStack(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(TORCH["functional"](0.3) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.fc1, self.fc2 = nnx.Linear(8, 8, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)
        self.drop = nnx.Dropout(0.3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(self.drop(self.fc1(x)))


class Stack(nnx.Module):
    """The three blocks in one `nnx.scan`."""

    def __init__(self) -> None:
        self.blocks = nnx.split_rngs(splits=3)(nnx.vmap(Block, in_axes=(0,), out_axes=0))(nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, self.blocks)
