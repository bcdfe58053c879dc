"""What is about tokens: positions, embeddings, and one vector of many tokens."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from tools.reliability.grammar.node import TOKENS, VECTOR, FlaxHalf, Format, Node, TorchHalf, empty, fill, param, stop


@dataclasses.dataclass(frozen=True, repr=False)
class Positions(Node):
    """A table of positions is added to the tokens: learned, or sinusoids computed in the code."""

    kinds = (TOKENS,)
    learned: bool = True

    def mistakes(self, given: Format) -> tuple[str, ...]:
        shifts = ("off by one", "reversed") if given.shape[0] > 1 else ()
        return (*shifts, *(() if self.learned else ("period 1000",)), "missing")


def _sinusoids(shape: tuple[int, ...], period: float = 10_000.0) -> np.ndarray:
    tokens, channels = shape
    steps = np.arange(channels) // 2 * 2 / channels
    angles = np.arange(tokens)[:, None] / period**steps
    return np.where(np.arange(channels) % 2, np.cos(angles), np.sin(angles))


class TorchPositions(TorchHalf, of=Positions):
    def __init__(self, node: Positions, given: Format) -> None:
        super().__init__(node, given)
        self.table = torch.nn.Parameter(torch.randn(1, *given.shape)) if node.learned else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + (torch.from_numpy(_sinusoids(x.shape[1:])).to(x.dtype) if self.table is None else self.table)


class FlaxPositions(FlaxHalf, of=Positions):
    def __init__(self, node: Positions, given: Format, twin: TorchPositions) -> None:
        super().__init__(node, given, twin)
        self.table: Any = None if twin.table is None else param(twin.table)

    def __call__(self, x: jax.Array) -> jax.Array:
        period = 1000.0 if self.wrong == "period 1000" else 10_000.0
        sinusoids = self.table is None
        table = jnp.asarray(_sinusoids(x.shape[1:], period), x.dtype)[None] if sinusoids else self.table[...]
        wrong = {"off by one": jnp.roll(table, 1, 1), "reversed": table[:, ::-1], "missing": 0 * table}
        return x + wrong.get(self.wrong, table)


@dataclasses.dataclass(frozen=True, repr=False)
class TokenMean(Node):
    """Tokens to one vector: the mean, the mean of those in the mask, the first or the largest."""

    kinds = (TOKENS,)
    how: str = "mean"

    @property
    def needs_mask(self) -> bool:  # type: ignore[override]
        return self.how == "masked mean"

    def out(self, given: Format) -> Format:
        self.check(given)
        return Format(VECTOR, given.shape[-1:])

    def mistakes(self, given: Format) -> tuple[str, ...]:
        return {
            "masked mean": ("over the padding", "divided by all"),
            "mean": ("first", "sum"),
            "first": ("last",),
        }.get(self.how, ("mean",))


class TorchTokenMean(TorchHalf, of=TokenMean):
    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        if mask is not None:
            weight = (mask > 0).to(x.dtype)[..., None]
            return (x * weight).sum(1) / weight.sum(1)
        return {"mean": x.mean(1), "first": x[:, 0], "max": x.max(1).values}[self.node.how]


class FlaxTokenMean(FlaxHalf, of=TokenMean):
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        how = self.wrong or self.node.how
        if mask is not None:
            weight = (mask > 0).astype(x.dtype)[..., None]
            total = x.sum(1) if how == "over the padding" else (x * weight).sum(1)
            return total / (x.shape[1] if how in ("divided by all", "over the padding") else weight.sum(1))
        if how == "max":  # XLA may compute x anew, find it nowhere equal to its maximum, and divide by 0
            return jnp.take_along_axis(x, x.argmax(1, keepdims=True), 1)[:, 0]
        return {"mean": x.mean(1), "first": x[:, 0], "last": x[:, -1], "sum": x.sum(1)}[how]


@dataclasses.dataclass(frozen=True, repr=False)
class Embedding(Node):
    """Ids to tokens, times sqrt(C) if `scaled`."""

    kinds = ("ids",)
    wrongs = ("ids shifted", "scale", "first row zero", "gradient of the table stopped")
    to: int = 4
    scaled: bool = False

    def out(self, given: Format) -> Format:
        self.check(given)
        return Format(TOKENS, (*given.shape, self.to), given.mask)


class TorchEmbedding(TorchHalf, of=Embedding):
    def __init__(self, node: Embedding, given: Format) -> None:
        super().__init__(node, given)
        self.table = torch.nn.Embedding(given.vocabulary, node.to)
        self.factor = math.sqrt(node.to) if node.scaled else 1.0

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.table(ids) * self.factor


class FlaxEmbedding(FlaxHalf, of=Embedding):
    def __init__(self, node: Embedding, given: Format, twin: TorchEmbedding) -> None:
        super().__init__(node, given, twin)
        self.factor = twin.factor
        self.table = nnx.Embed(*twin.table.weight.shape, embedding_init=empty, rngs=nnx.Rngs(0))
        fill(self.table.embedding, twin.table.weight)

    def __call__(self, ids: jax.Array) -> jax.Array:
        wrong = self.wrong
        x = self.table((ids + 1) % self.table.num_embeddings if wrong == "ids shifted" else ids)
        x = x * (self.factor * 1.1 if wrong == "scale" else self.factor)
        x = jnp.where((ids == 0)[..., None], 0, x) if wrong == "first row zero" else x
        return stop(x) if wrong == "gradient of the table stopped" else x
