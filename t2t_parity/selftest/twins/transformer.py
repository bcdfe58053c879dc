"""A small ViT and a small GPT in PyTorch, and the arithmetic that their ports in every library of JAX share."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import torch

KINDS = ("vit", "gpt")
WIDTH, HEADS, TOKENS, WORDS, CLASSES, PATCH = 16, 2, 5, 11, 4, 4

RATE = 0.1
"""Dropout rate."""


@dataclasses.dataclass(frozen=True)
class Port:
    """What a port computes; other values than the defaults are mistakes, in `block1` alone if in a block."""

    kind: Literal["vit", "gpt"]
    tanh: bool = False
    epsilon: float = 1e-5
    scaled: bool = True
    exchanged: bool = False
    first_position: int = 0
    rate: float = RATE

    def block(self, index: int) -> Port:
        return self if index == 1 else Port(self.kind)


class TorchAttention(torch.nn.Module):
    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.qkv, self.proj, self.causal = torch.nn.Linear(WIDTH, 3 * WIDTH), torch.nn.Linear(WIDTH, WIDTH), causal

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (y.unflatten(-1, (HEADS, -1)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.proj(y.transpose(1, 2).flatten(2))


class TorchBlock(torch.nn.Module):
    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.norm1, self.attn = torch.nn.LayerNorm(WIDTH), TorchAttention(causal)
        self.norm2, self.fc1, self.act = torch.nn.LayerNorm(WIDTH), torch.nn.Linear(WIDTH, 2 * WIDTH), torch.nn.GELU()
        self.fc2, self.drop = torch.nn.Linear(2 * WIDTH, WIDTH), torch.nn.Dropout(RATE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.drop(self.fc2(self.act(self.fc1(self.norm2(x)))))


class TorchViT(torch.nn.Module):
    """(B, 3, 8, 8) -> (B, CLASSES)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.cls = torch.nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos = torch.nn.Parameter(torch.zeros(1, TOKENS, WIDTH))
        self.block0, self.block1 = TorchBlock(False), TorchBlock(False)
        self.norm, self.head = torch.nn.LayerNorm(WIDTH), torch.nn.Linear(WIDTH, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls.expand(len(x), 1, WIDTH), x), 1) + self.pos
        return self.head(self.norm(self.block1(self.block0(x)))[:, 0])


class TorchGPT(torch.nn.Module):
    """(B, TOKENS) -> (B, TOKENS, CLASSES)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(WORDS, WIDTH)
        self.pos = torch.nn.Parameter(torch.zeros(1, TOKENS, WIDTH))
        self.block0, self.block1 = TorchBlock(True), TorchBlock(True)
        self.norm, self.head = torch.nn.LayerNorm(WIDTH), torch.nn.Linear(WIDTH, CLASSES)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids) + self.pos
        return self.head(self.norm(self.block1(self.block0(x))))


def inputs(kind: str, draw: np.random.RandomState) -> np.ndarray:
    """Return images or token ids."""
    return draw.standard_normal((2, 3, 8, 8)) if kind == "vit" else draw.randint(0, WORDS, (2, TOKENS))


def attend(qkv: jax.Array, port: Port) -> jax.Array:
    """Return the attention of one example (N, 3 * WIDTH) or of a batch, without projections."""
    q, k, v = (x.reshape(*x.shape[:-1], HEADS, -1) for x in jnp.split(qkv, 3, -1))
    if port.exchanged:
        q, k = k, q
    scale = (WIDTH // HEADS) ** -0.5 if port.scaled else 1.0
    scores = jnp.einsum("...qhd,...khd->...hqk", q, k) * scale
    if port.kind == "gpt":
        future = jnp.triu(jnp.ones(scores.shape, bool), 1)
        scores = jnp.where(future, -jnp.inf, scores)
    y = jnp.einsum("...hqk,...khd->...qhd", jax.nn.softmax(scores, axis=-1), v)
    return y.reshape(*y.shape[:-2], -1)


def activation(x: jax.Array, port: Port) -> jax.Array:
    return jax.nn.gelu(x, approximate=port.tanh)


def positions(pos: Any, port: Port) -> Any:
    return jnp.roll(pos, -port.first_position, 1)
