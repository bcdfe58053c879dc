"""Mistakes that only training mode reveals: in dropout masks and in running statistics."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from t2t_parity.selftest.mutation import Apply, Mutation, at, calling, setting


def _train(name: str, pair: str, module: str, cause: str | None, apply: Apply) -> Mutation:
    return Mutation(name, "train", pair, module, cause, apply)


def _as_flax(model: nnx.Module) -> None:
    at(model, "norm1").__class__ = nnx.BatchNorm


def _frozen(self: Any, original: Any, x: jax.Array) -> jax.Array:
    mean, variance = self.mean[...], self.var[...]
    y = original(x)
    self.mean[...], self.var[...] = mean, variance
    return y


def _as_flax_with_its_momentum(model: nnx.Module) -> None:
    _as_flax(model)
    at(model, "norm1").momentum = 0.99


def _in_evaluation(self: Any, original: Any, x: jax.Array) -> jax.Array:
    return original(x, use_running_average=True)


def _never_dropping(self: Any, original: Any, x: jax.Array) -> jax.Array:
    return original(x, deterministic=True)


def _larger_in_training(self: Any, original: Any, x: jax.Array) -> jax.Array:
    y = original(x)
    return y if self.deterministic else y + 0.01 * x


def _counts(self: Any) -> list[Any]:
    return [node for _, node in nnx.iter_graph(self.rngs) if isinstance(node, nnx.RngCount)]


def _one_key(self: Any, original: Any, x: jax.Array, rate: float, *shared: int) -> jax.Array:
    """Advance the random key only after the last draw."""
    before = [count[...] for count in _counts(self)]
    y = original(x, rate, *shared)
    if rate != self.depth:
        for count, old in zip(_counts(self), before, strict=True):
            count[...] = old
    return y


def _constant_key(self: Any, original: Any, x: jax.Array, rate: float, *shared: int) -> jax.Array:
    for count in _counts(self):
        count[...] = jnp.zeros_like(count[...])
    return original(x, rate, *shared)


def _random(name: str, cause: str | None, **attributes: Any) -> Mutation:
    return _train(name, "random", "block", cause, setting("block", **attributes))


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
    _train("dropout left in evaluation", "dropout", "drop", "dropout rate", calling("drop", _never_dropping)),
    _random("functional dropout forgotten", "dropout rate", rate=0.0),
    _random("functional dropout at thrice the rate", "dropout rate", rate=0.3),
    _random("attention's dropout forgotten", "dropout rate", attention=0.0),
    _random("attention's dropout at half the rate", "dropout rate", attention=0.1),
    _random("attention's dropout shared by the heads", "dropout draws", heads_share=(1,)),
    _random("stochastic depth forgotten", "dropout rate", depth=0.0),
    _random("stochastic depth by element", "dropout draws", depth_shares=()),
    _random("stochastic depth by token", "dropout draws", depth_shares=(2,)),
    _random("a dropout too many", "dropout rate", extra=0.1),
    _random("dropout before the projection", None, early=True),
    _random("kept numbers not scaled", None, scaled=False),
    _train("one key for all draws", "random", "block", "random draw", calling("block", _one_key, "dropped")),
    _train("one key for all steps", "random", "block", "dropout rate", calling("block", _constant_key, "dropped")),
    _train("a term in training only", "random", "block", None, calling("block", _larger_in_training)),
    _train(
        "momentum and variance both flax's",
        "convnet",
        "norm1",
        "batch norm momentum and running variance",
        _as_flax_with_its_momentum,
    ),
    _train("batch statistics left out", "convnet", "norm1", "running statistics", calling("norm1", _in_evaluation)),
    _train("momentum as weight of the new", "convnet", "norm1", "batch norm momentum", setting("norm1", momentum=0.1)),
    _train("running variance biased", "convnet", "norm1", "running variance", _as_flax),
    _train("running statistics not updated", "convnet", "norm1", "running statistics", calling("norm1", _frozen)),
)
