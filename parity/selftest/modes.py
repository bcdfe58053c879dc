"""Mistakes that only training mode shows: what dropout draws, what a batch leaves behind."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

from parity.selftest.mutation import Apply, Mutation, at, calling, setting


def _train(name: str, pair: str, module: str, cause: str | None, apply: Apply) -> Mutation:
    return Mutation(name, "train", pair, module, cause, apply)


def _as_flax(model: nnx.Module) -> None:
    at(model, "norm1").__class__ = nnx.BatchNorm


def _frozen(self: Any, original: Any, x: jax.Array) -> jax.Array:
    mean, variance = self.mean[...], self.var[...]
    y = original(x)
    self.mean[...], self.var[...] = mean, variance
    return y


TRAIN = (
    _train(
        "dropout at twice the rate",
        "dropout",
        "drop",
        "dropout rate",
        setting("drop", rate=0.2),
    ),
    _train(
        "drop path drawn per channel",
        "dropout",
        "drop_path",
        "dropout draws",
        setting("drop_path", broadcast_dims=(1,)),
    ),
    _train("momentum as weight of the new", "convnet", "norm1", "batch norm momentum", setting("norm1", momentum=0.1)),
    _train("running variance biased", "convnet", "norm1", "running variance", _as_flax),
    _train("running statistics not updated", "convnet", "norm1", "running statistics", calling("norm1", _frozen)),
)
