"""A small transformer twice, in PyTorch and as a plain function of JAX, with mistakes to plant."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn import functional

import parity
from parity.carry.model_types import jax_subject
from parity.measure.gates import Gates
from parity.runs.jax_side import JaxSide
from parity.runs.torch_side import TorchSide
from parity.trace.stage import Traced, traced_rows

DIM, HEADS, TOKENS, CLASSES, DEPTH = 8, 2, 5, 3, 3


class Attention(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = torch.nn.Linear(DIM, 3 * DIM), torch.nn.Linear(DIM, DIM)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, HEADS, C // HEADS).permute(2, 0, 3, 1, 4)
        x = (q @ k.mT * (C // HEADS) ** -0.5).softmax(-1) @ v
        return self.proj(x.transpose(1, 2).reshape(B, N, C))


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2, self.attn = torch.nn.LayerNorm(DIM), torch.nn.LayerNorm(DIM), Attention()
        self.fc1, self.fc2 = torch.nn.Linear(DIM, 2 * DIM), torch.nn.Linear(2 * DIM, DIM)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))


class Transformer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(Block() for _ in range(DEPTH))
        self.head = torch.nn.Linear(DIM, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def linear(p: Any, x: jax.Array) -> jax.Array:
    return x @ p["w"] + p["b"]


def zero_linear(n: int, m: int) -> dict[str, np.ndarray]:
    return {"w": np.zeros((n, m)), "b": np.zeros(m)}


def zeros() -> dict[str, Any]:
    norm = {"scale": np.zeros(DIM), "b": np.zeros(DIM)}
    block: dict[str, Any] = {
        "norm1": norm,
        "norm2": norm,
        "fc1": zero_linear(DIM, 2 * DIM),
        "fc2": zero_linear(2 * DIM, DIM),
    }
    block["attn"] = {"qkv": zero_linear(DIM, 3 * DIM), "proj": zero_linear(DIM, DIM)}
    blocks = {str(i): block for i in range(DEPTH)}
    return {"blocks": blocks, "head": zero_linear(DIM, CLASSES)}


def normed(p: Any, x: jax.Array, wrong: str) -> jax.Array:
    x = x - x.mean(-1, keepdims=True)
    eps = 1e-6 if wrong == "eps" else 1e-5
    return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + eps) * p["scale"] + p["b"]  # eps


def attention(p: Any, x: jax.Array, wrong: str) -> jax.Array:
    B, N, C = x.shape
    q, k, v = linear(p["qkv"], x).reshape(B, N, 3, HEADS, C // HEADS).transpose(2, 0, 3, 1, 4)
    factor = 1 / C**0.5 if wrong == "scale" else (C // HEADS) ** -0.5
    logits = q @ k.mT * factor  # scale
    weights = jax.nn.softmax(logits, axis=-2 if wrong == "softmax" else -1)  # softmax
    x = weights @ v
    x = x.reshape(B, N, C) if wrong == "heads" else x.transpose(0, 2, 1, 3).reshape(B, N, C)  # heads
    return linear(p["proj"], x)


def block(p: Any, x: jax.Array, wrong: str = "") -> jax.Array:
    y = attention(p["attn"], normed(p["norm1"], x, wrong), wrong)
    x = y if wrong == "residual" else x + y  # residual
    y = linear(p["fc1"], normed(p["norm2"], x, ""))
    y = jnp.log(y) if wrong == "nan" else jax.nn.gelu(y, approximate=wrong == "gelu")  # gelu
    return x + linear(p["fc2"], y)


def transformer(wrong: Mapping[int, str]) -> Callable[..., jax.Array]:
    """Return the transformer as a function of its parameters and an input, with mistakes in some blocks."""

    def forward(params: Any, x: jax.Array) -> jax.Array:
        for i in range(DEPTH):
            x = block(params["blocks"][str(i)], x, wrong.get(i, ""))
        return linear(params["head"], x.mean(1))

    return forward


def line_of(mark: str) -> str:
    """Return file and line of the code of this file that ends with the comment `mark`."""
    source = Path(__file__).read_text().splitlines()
    (line,) = [i for i, text in enumerate(source, 1) if text.endswith(f"  # {mark}")]
    return f"{Path(inspect.getfile(transformer)).name}:{line}"


def tokens() -> np.ndarray:
    return np.random.RandomState(0).standard_normal((2, TOKENS, DIM))


@dataclasses.dataclass(frozen=True)
class Sides:
    """Both models in float64, and the arrays that they run on."""

    ours: TorchSide
    theirs: JaxSide
    arrays: Sequence[np.ndarray]

    @classmethod
    def of(
        cls,
        model: torch.nn.Module,
        function: Callable[..., Any],
        params: Any,
        *arrays: np.ndarray,
        rules: parity.Rules | None = None,
        tied: bool = False,
    ) -> Sides:
        """Fill a PyTorch model with random weights and give them to a function of JAX.

        With `tied`, all modules of one type and shape have equal weights.
        """
        parity.randomize(model)
        if tied:
            first: dict[Any, torch.Tensor] = {}
            for name, p in model.named_parameters():
                p.data = first.setdefault((name.rsplit(".")[-1], p.shape), p.data).clone()
        jax_model = parity.function(function, params)
        parity.torch_to_jax(model, jax_model, rules=rules)
        axes = [tuple(range(x.ndim)) for x in arrays]
        return cls(TorchSide.of(model, "float64"), JaxSide.of(jax_subject(jax_model), "float64", axes), arrays)

    def stage(self, *, differ: bool = True) -> Traced:
        return traced_rows(self.ours, self.theirs, self.arrays, Gates(), differ=differ)


def planted(**wrong: str) -> Sides:
    """Return the transformer with mistakes, for example `block1="gelu"`."""
    mistakes = {int(name.removeprefix("block")): mistake for name, mistake in wrong.items()}
    return Sides.of(Transformer(), transformer(mistakes), zeros(), tokens())
