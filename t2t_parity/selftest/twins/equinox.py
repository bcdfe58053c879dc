"""The ViT and the GPT of `transformer` in Equinox, for one example."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

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
    positions,
)

KEY = jax.random.key(0)


class Attention(eqx.Module):
    qkv: eqx.nn.Linear
    proj: eqx.nn.Linear
    port: Port = eqx.field(static=True)

    def __init__(self, port: Port) -> None:
        self.qkv, self.port = eqx.nn.Linear(WIDTH, 3 * WIDTH, key=KEY), port
        self.proj = eqx.nn.Linear(WIDTH, WIDTH, key=KEY)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.vmap(self.proj)(attend(jax.vmap(self.qkv)(x), self.port))


class Block(eqx.Module):
    norm1: eqx.nn.LayerNorm
    attn: Attention
    norm2: eqx.nn.LayerNorm
    fc1: eqx.nn.Linear
    fc2: eqx.nn.Linear
    drop: eqx.nn.Dropout
    port: Port = eqx.field(static=True)

    def __init__(self, port: Port) -> None:
        self.norm1, self.attn = eqx.nn.LayerNorm(WIDTH, 1e-5), Attention(port)
        self.norm2, self.port = eqx.nn.LayerNorm(WIDTH, port.epsilon), port
        self.fc1, self.fc2 = (eqx.nn.Linear(*sizes, key=KEY) for sizes in ((WIDTH, 2 * WIDTH), (2 * WIDTH, WIDTH)))
        self.drop = eqx.nn.Dropout(port.rate)

    def __call__(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        x = x + self.attn(jax.vmap(self.norm1)(x))
        h = activation(jax.vmap(self.fc1)(jax.vmap(self.norm2)(x)), self.port)
        return x + self.drop(jax.vmap(self.fc2)(h), key=key)


class Twin(eqx.Module):
    embed: Any
    cls: jax.Array | None
    pos: jax.Array
    block0: Block
    block1: Block
    norm: eqx.nn.LayerNorm
    head: eqx.nn.Linear
    port: Port = eqx.field(static=True)

    def __init__(self, port: Port) -> None:
        images = port.kind == "vit"
        self.embed = (
            eqx.nn.Conv2d(3, WIDTH, PATCH, PATCH, key=KEY) if images else eqx.nn.Embedding(WORDS, WIDTH, key=KEY)
        )
        self.cls, self.pos = jnp.zeros((1, 1, WIDTH)) if images else None, jnp.zeros((1, TOKENS, WIDTH))
        self.block0, self.block1 = Block(port.block(0)), Block(port.block(1))
        self.norm, self.head, self.port = eqx.nn.LayerNorm(WIDTH, 1e-5), eqx.nn.Linear(WIDTH, CLASSES, key=KEY), port

    def __call__(self, x: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        if self.cls is None:
            x = jax.vmap(self.embed)(x)
        else:
            x = jnp.concatenate((self.cls[0], self.embed(x).reshape(WIDTH, -1).T))
        x = x + positions(self.pos, self.port)[0]
        keys = (None, None) if key is None else jax.random.split(key)
        x = jax.vmap(self.norm)(self.block1(self.block0(x, keys[0]), keys[1]))
        return jax.vmap(self.head)(x) if self.cls is None else self.head(x[0])


def port(what: Port) -> Adapter:
    """Return the port with weights of its own."""
    return parity.equinox(Twin(what))
