"""Calls of modules inside of jit, remat, vmap and scan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import parity
from parity.recording.capture import NestedCallError
from parity.recording.transformations import has_paths, jax_calls, with_paths

X = np.random.RandomState(0).standard_normal((3, 4)).astype(np.float32)


class TorchBlock(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.fc(x))


class TorchStack(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList([TorchBlock(), TorchBlock()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.fc = nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.tanh(self.fc(x))


class JitBlock(Block):
    @nnx.jit
    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.tanh(self.fc(x))


class RematBlock(Block):
    @nnx.remat
    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.tanh(self.fc(x))


class WrongJitBlock(Block):
    @nnx.jit
    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.tanh(self.fc(x)) * 1.001


Run = Callable[[Any, jax.Array], jax.Array]


class Stack(nnx.Module):
    def __init__(self, block: type[Block], run: Run) -> None:
        rngs = nnx.Rngs(0)
        self.blocks = nnx.List([Block(rngs), block(rngs)])
        self.run = run

    def __call__(self, x: jax.Array) -> jax.Array:
        for block in self.blocks:
            x = self.run(block, x)
        return x


def plain(block: Any, x: jax.Array) -> jax.Array:
    return block(x)


WAYS: dict[str, tuple[type[Block], Run]] = {
    "nnx.jit": (JitBlock, plain),
    "nnx.remat": (RematBlock, plain),
    "nnx.remat at the call": (Block, lambda block, x: nnx.remat(lambda m, y: m(y))(block, x)),
    "jax.checkpoint": (Block, lambda block, x: jax.checkpoint(block)(x)),
    "jax.jit": (Block, lambda block, x: jax.jit(lambda y: block(y))(x)),
    "jit in checkpoint": (Block, lambda block, x: jax.checkpoint(lambda y: jax.jit(lambda z: block(z))(y))(x)),
    "jax.vmap": (Block, lambda block, x: jax.vmap(block)(x)),
    "jax.lax.scan": (Block, lambda block, x: jax.lax.scan(lambda c, row: (c, block(row)), 0, x[None])[1][0]),
}


def pair(block: type[Block], run: Run) -> tuple[torch.nn.Module, nnx.Module]:
    torch_model, jax_model = TorchStack(), Stack(block, run)
    parity.torch_to_jax(torch_model, jax_model)
    return torch_model, jax_model


@pytest.mark.parametrize("way", WAYS)
def test_every_call_is_seen(way: str) -> None:
    _, jax_model = pair(*WAYS[way])
    with pytest.raises(NestedCallError):
        jax.eval_shape(lambda x: jax_calls(jax_model, (x,)), X)
    wanted = jax_calls(pair(Block, plain)[1], (jnp.asarray(X),))
    calls = jax_calls(with_paths(jax_model), (jnp.asarray(X),))
    assert calls.keys() == wanted.keys()


@pytest.mark.parametrize("way", ["nnx.jit", "jax.checkpoint", "jax.vmap"])
def test_a_right_port_is_equal_with_every_module_and_gradient(way: str) -> None:
    report = parity.check(*pair(*WAYS[way]), X)
    assert report.passed, str(report)
    assert [name for name, _ in report.layers] == ["blocks.0.fc", "blocks.0", "blocks.1.fc", "blocks.1", ""]


def test_a_wrong_one_is_named() -> None:
    report = parity.check(*pair(WrongJitBlock, plain), X, level="forward")
    assert not report.passed
    assert report.first_divergence == "blocks.1"


def test_paths_are_on_a_copy() -> None:
    _, model = pair(Block, plain)
    assert has_paths(with_paths(model))
    assert not has_paths(model)
