"""Compiled in blocks, a model computes the same; identical blocks share a program; unsuitable models are detected."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from parity.recording.capture import Call, Calls
from parity.recording.transformations import jax_calls
from parity.runs.compiled_blocks import (
    CompiledBlocks,
    SeparationError,
    block_names,
    jax_calls_in_blocks,
    start_compiling,
)
from parity.runs.instrumented import altered_in_blocks
from tests.support.golden import rel_f

X = np.random.RandomState(0).standard_normal((2, 4))


class Mlp(nnx.Module):
    """A block: two linear layers in a list, around a residual."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(2)])

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x
        for layer in self.layers:
            y = nnx.gelu(layer(y))
        return x + y


class Deep(nnx.Module):
    def __init__(self, depth: int = 5) -> None:
        rngs = nnx.Rngs(0)
        self.stem = nnx.Linear(4, 4, rngs=rngs)
        self.blocks = nnx.List([Mlp(rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(4, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Twice(Deep):
    """Calls a block a second time."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.blocks[0](super().__call__(x))


class Reaching(Deep):
    """Calls a part of a block."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.blocks[0].layers[0](super().__call__(x))


class Counting(Mlp):
    """Counts its calls in a variable."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        super().__init__(rngs)
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, x: jax.Array) -> jax.Array:
        self.calls[...] += 1
        return super().__call__(x)


def begun(model: nnx.Module, reference: Calls, forced: bool | None, pool: ThreadPoolExecutor) -> CompiledBlocks:
    graphdef, state = nnx.split(model)

    def run(blocks: CompiledBlocks, state: nnx.State, x: jax.Array) -> Calls:
        merged = nnx.merge(graphdef, state)
        return jax_calls_in_blocks(blocks, merged, (x,), reference, only=set(reference), forced=forced)

    blocks = start_compiling(block_names(model), pool, run, state, jnp.asarray(X))
    blocks.ready()
    return blocks


def test_blocks_in_a_list_and_their_neighbours_are_compiled_separately():
    assert block_names(Deep()) == {"stem", "norm", *(f"blocks.{i}" for i in range(5))}
    assert block_names(Deep(1)) == {""}
    assert block_names(Mlp(nnx.Rngs(0))) == {""}  # layers of a list are too small


def test_alike_blocks_share_a_program():
    model = Deep()
    with ThreadPoolExecutor(1) as pool:
        blocks = begun(model, jax_calls(model, (jnp.asarray(X),)), True, pool)
    assert len(blocks._programs) == 3


@pytest.mark.parametrize("forced", [False, True, None])
def test_calls_are_those_of_the_whole(forced: bool | None):
    model = Deep()
    x = jnp.asarray(X)
    free = jax_calls(model, (x,))
    reference = {
        key: Call([2 * x for x in call.inputs or []], [3 * x for x in call.outputs]) for key, call in free.items()
    }
    with ThreadPoolExecutor(1) as pool:
        blocks = begun(model, reference, forced, pool)
        found = jax_calls_in_blocks(blocks, model, (x,), reference, only=set(reference), forced=forced)
    wanted = free if forced is False else jax_calls(model, (x,), reference)
    assert list(found) == list(wanted)
    for key, call in wanted.items():
        for a, b in zip(
            (found[key].inputs or []) + found[key].outputs, (call.inputs or []) + call.outputs, strict=True
        ):
            assert a.dtype == b.dtype
            assert rel_f(a, b) < 1e-6


def test_gradients_are_those_of_the_whole(x64: None):
    model = Deep()
    graphdef, state = nnx.split(model)
    state = jax.tree.map(lambda v: v.astype(jnp.float64), state)

    def whole(state: nnx.State, x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(nnx.merge(graphdef, state)(x)))

    def parts(blocks: CompiledBlocks, state: nnx.State, x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(altered_in_blocks(blocks, nnx.merge(graphdef, state), [x], ({}, {}))))

    with ThreadPoolExecutor(1) as pool:
        blocks = start_compiling(block_names(model), pool, parts, state, jnp.asarray(X), gradients=True)
        blocks.ready()
        found = jax.grad(parts, argnums=(1, 2))(blocks, state, jnp.asarray(X))
    wanted = jax.grad(whole, argnums=(0, 1))(state, jnp.asarray(X))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert rel_f(a, b) < 1e-14


@pytest.mark.parametrize("kind", [Twice, Reaching])
def test_calls_that_blocks_cannot_see_do_not_fit(kind: type[Deep]):
    model = kind()
    with ThreadPoolExecutor(1) as pool, pytest.raises(SeparationError):
        begun(model, jax_calls(model, (jnp.asarray(X),)), True, pool)


def test_attributes_without_a_hash_leave_the_model_whole():
    model = Deep()
    model.blocks[1].options = {"scale": 2}
    assert block_names(model) == {""}
    x = jnp.asarray(X)
    free = jax_calls(model, (x,))
    with ThreadPoolExecutor(1) as pool:
        blocks = begun(model, free, True, pool)
        found = jax_calls_in_blocks(blocks, model, (x,), free, only=set(free), forced=False)
    assert rel_f(found["", 0].outputs[0], free["", 0].outputs[0]) < 1e-6


def test_a_block_that_changes_its_variables_does_not_fit():
    model = Deep(0)
    model.blocks = nnx.List([Counting(nnx.Rngs(0)) for _ in range(3)])
    with ThreadPoolExecutor(1) as pool, pytest.raises(SeparationError):
        begun(model, {}, None, pool)
