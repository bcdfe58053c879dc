"""The ViT and the GPT of `transformer` in Linen."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import parity
from parity.carry.program import Adapter
from t2t_parity.selftest.twins.transformer import (
    CLASSES,
    PATCH,
    TOKENS,
    WIDTH,
    WORDS,
    Port,
    activation,
    attend,
    inputs,
    positions,
)


class Attention(nn.Module):
    port: Port

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(WIDTH, name="proj")(attend(nn.Dense(3 * WIDTH, name="qkv")(x), self.port))


class Block(nn.Module):
    port: Port

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = x + Attention(self.port, name="attn")(nn.LayerNorm(1e-5, use_fast_variance=False, name="norm1")(x))
        h = nn.LayerNorm(self.port.epsilon, use_fast_variance=False, name="norm2")(x)
        h = activation(nn.Dense(2 * WIDTH, name="fc1")(h), self.port)
        return x + nn.Dropout(self.port.rate, deterministic=not train)(nn.Dense(WIDTH, name="fc2")(h))


class Twin(nn.Module):
    port: Port

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        zeros = nn.initializers.zeros
        if self.port.kind == "vit":
            x = nn.Conv(WIDTH, (PATCH, PATCH), PATCH, padding="VALID", name="embed")(x).reshape(len(x), -1, WIDTH)
            cls = self.param("cls", zeros, (1, 1, WIDTH))
            x = jnp.concatenate((jnp.broadcast_to(cls, (len(x), 1, WIDTH)), x), 1)
        else:
            x = nn.Embed(WORDS, WIDTH, name="embed")(x)
        x = x + positions(self.param("pos", zeros, (1, TOKENS, WIDTH)), self.port)
        for i in range(2):
            x = Block(self.port.block(i), name=f"block{i}")(x, train)
        x = nn.LayerNorm(1e-5, use_fast_variance=False, name="norm")(x)
        return nn.Dense(CLASSES, name="head")(x[:, 0] if self.port.kind == "vit" else x)


def port(what: Port) -> Adapter:
    """Return the port with weights of its own."""
    module, example = Twin(what), jnp.asarray(inputs(what.kind, np.random.RandomState(0)))
    variables: Any = module.init(jax.random.key(0), jnp.moveaxis(example, 1, -1) if what.kind == "vit" else example)
    return parity.linen(module, variables, train_kwargs={"train": True})
