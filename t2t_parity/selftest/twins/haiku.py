"""The ViT and the GPT of `transformer` in Haiku."""

from __future__ import annotations

from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

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


class Attention(hk.Module):
    def __init__(self, port: Port, name: str) -> None:
        super().__init__(name)
        self.port = port

    def __call__(self, x: jax.Array) -> jax.Array:
        return hk.Linear(WIDTH, name="proj")(attend(hk.Linear(3 * WIDTH, name="qkv")(x), self.port))


class Block(hk.Module):
    def __init__(self, port: Port, name: str) -> None:
        super().__init__(name)
        self.port = port

    def __call__(self, x: jax.Array, is_training: bool) -> jax.Array:
        x = x + Attention(self.port, "attn")(hk.LayerNorm(-1, True, True, 1e-5, name="norm1")(x))
        h = hk.LayerNorm(-1, True, True, self.port.epsilon, name="norm2")(x)
        h = hk.Linear(WIDTH, name="fc2")(activation(hk.Linear(2 * WIDTH, name="fc1")(h), self.port))
        return x + (hk.dropout(hk.next_rng_key(), self.port.rate, h) if is_training else h)


def port(what: Port) -> Adapter:
    """Return the port with weights of its own."""

    def twin(x: Any, is_training: bool = False) -> Any:
        if what.kind == "vit":
            x = hk.Conv2D(WIDTH, PATCH, PATCH, padding="VALID", name="embed")(x).reshape(len(x), -1, WIDTH)
            cls = hk.get_parameter("cls", (1, 1, WIDTH), init=hk.initializers.Constant(0))
            x = jnp.concatenate((jnp.broadcast_to(cls, (len(x), 1, WIDTH)), x), 1)
        else:
            x = hk.Embed(WORDS, WIDTH, name="embed")(x)
        x = x + positions(hk.get_parameter("pos", (1, TOKENS, WIDTH), init=hk.initializers.Constant(0)), what)
        for i in range(2):
            x = Block(what.block(i), f"block{i}")(x, is_training)
        x = hk.LayerNorm(-1, True, True, 1e-5, name="norm")(x)
        return hk.Linear(CLASSES, name="head")(x[:, 0] if what.kind == "vit" else x)

    transformed, example = hk.transform(twin), jnp.asarray(inputs(what.kind, np.random.RandomState(0)))
    params = transformed.init(jax.random.key(0), jnp.moveaxis(example, 1, -1) if what.kind == "vit" else example)
    return parity.haiku(transformed, params, train_kwargs={"is_training": True})
