"""Mistakes in derivatives that leave the forward pass exact."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from t2t_parity.selftest.mutation import Apply, Mutation, along_channels, calling

stop = jax.lax.stop_gradient


def _gradient(name: str, pair: str, module: str, cause: str | None, apply: Apply) -> Mutation:
    return Mutation(name, "gradient", pair, module, cause, apply)


def _value_of(value: jax.Array, slope: jax.Array) -> jax.Array:
    """Return `value`, with the derivative of `slope`."""
    return slope + stop(value - slope)


def _stopped_residual(self: Any, original: Any, x: jax.Array, rngs: Any = None) -> jax.Array:
    x = stop(x) + self.drop_path(self.attn(self.norm1(x), rngs), rngs=rngs)
    return x + self.drop_path(self.mlp(self.norm2(x), rngs), rngs=rngs)


def _stopped_bias(self: Any, original: Any, x: jax.Array) -> jax.Array:
    return x @ self.kernel[...] + along_channels(stop(self.bias[...]), x)


def _stopped_statistics(self: Any, original: Any, x: jax.Array) -> jax.Array:
    mean, variance = stop(x.mean(-1, keepdims=True)), stop(x.var(-1, keepdims=True))
    scale, bias = (along_channels(p[...], x) for p in (self.scale, self.bias))
    y = (x - mean) / jnp.sqrt(variance + self.epsilon) * scale + bias
    return _value_of(original(x), y)


def _stopped_table(self: Any, original: Any, x: jax.Array, rngs: Any = None) -> jax.Array:
    x = self.patch_embed(x)
    token = jnp.broadcast_to(stop(self.cls_token[...]), (x.shape[0], 1, x.shape[-1]))
    x = self.pos_drop(jnp.concatenate((token, x), axis=1) + self.pos_embed[...], rngs=rngs)
    for block in self.blocks:
        x = block(x, rngs)
    return self.norm(x)


GRADIENT = (
    _gradient("residual cut", "performer", "blocks.0", "gradient cut", calling("blocks.0", _stopped_residual)),
    _gradient(
        "derivative of the tanh GELU",
        "performer",
        "blocks.0.mlp.act",
        "derivative",
        calling(
            "blocks.0.mlp.act",
            lambda self, original, x: _value_of(original(x), jax.nn.gelu(x, approximate=True)),
        ),
    ),
    _gradient(
        "derivative doubled",
        "vit",
        "blocks.0.norm2",
        "gradient scale",
        calling("blocks.0.norm2", lambda self, original, x: 2 * original(x) - stop(original(x))),
    ),
    _gradient(
        "bias not trained", "vit", "blocks.0.mlp.fc2", "gradient cut", calling("blocks.0.mlp.fc2", _stopped_bias)
    ),
    _gradient("statistics held fixed", "vit", "norm", None, calling("norm", _stopped_statistics)),
    _gradient(
        "gate held fixed",
        "se",
        "blocks.0.attn.se_layer",
        "gradient cut",
        calling(
            "blocks.0.attn.se_layer",
            lambda self, original, x: x * stop(self.fc(x.mean(axis=1)))[:, None],
        ),
    ),
    _gradient(
        "class token not trained", "vit", "the model", "gradient cut", calling("", _stopped_table, "forward_features")
    ),
    _gradient(
        "straight through ReLU",
        "convnet",
        "act1",
        None,
        calling("act1", lambda self, original, x: _value_of(original(x), x)),
    ),
)
