"""Like blocks as one: every tensor of theirs in one array with a leading axis for the block, run by a scan.

A program with a scan holds one block however many there are, so it compiles in the time of one. The stack lies where
the list lay: `blocks.3.attn.qkv.kernel` (C, 3 C) is `blocks.attn.qkv.kernel[3]` of (L, C, 3 C).
Shapes: L blocks, B batch, N tokens, C channels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from t2t_jax.models.layers import DropPath

STACK = "blocks"
"""Attribute of a model that holds its blocks, a list or a stack of them."""

_OF_BLOCK = re.compile(rf"{STACK}\.(\d+)(?:\.(.+))?")
_OF_STACK = re.compile(rf"{STACK}\.(?!\d+\.)(.+)")


# --- Models -------------------------------------------------------------------------------------------------


def stack_blocks(model: Any) -> Any:
    """`model`, changed in place: its list of blocks is one block, as `nnx.vmap` would make it, with stacked tensors.

    Raises:
        ValueError: its blocks differ in more than their rate of stochastic depth.
    """
    blocks = list(model.blocks)
    rates = tuple(block.drop_path.rate if hasattr(block, "drop_path") else 0.0 for block in blocks)
    for block in blocks:
        if hasattr(block, "drop_path") and len(set(rates)) > 1:
            block.drop_path.rate = rates
    graphdefs, states = zip(*(nnx.split(block) for block in blocks), strict=True)
    if any(graphdef != graphdefs[0] for graphdef in graphdefs) or len({_shapes(state) for state in states}) > 1:
        raise ValueError(f"the blocks of {type(model).__name__} are not alike, so no scan can run them: leave it out")
    model.blocks = nnx.merge(graphdefs[0], jax.tree.map(lambda *tensors: jnp.stack(tensors), *states))
    return model


def unstack_blocks(model: Any) -> Any:
    """`model`, changed in place, with a list of blocks in place of a stack, if it has one; the inverse of
    `stack_blocks`.
    """
    if not isinstance(getattr(model, STACK, nnx.List()), nnx.List):
        graphdef, state = nnx.split(model.blocks)
        blocks = [nnx.merge(graphdef, jax.tree.map(lambda x, i=i: x[i], state)) for i in range(_length(state))]
        for block, rate in zip(blocks, _rates(model.blocks) or (), strict=False):
            block.drop_path.rate = rate
        model.blocks = nnx.List(blocks)
    return model


def run_blocks(
    blocks: Any,
    x: jax.Array,
    rngs: nnx.Rngs | None = None,
    *,
    each: Callable[[nnx.Module], Callable[..., jax.Array]] = lambda block: block,
) -> jax.Array:
    """x (B, N, C) through a list of blocks, or through a stack of them by a scan: the same, with the same dropout.

    Args:
        blocks: of a model.
        x: tokens.
        rngs: stream `dropout`, in training.
        each: what is called in place of a block of a stack.
    """
    if isinstance(blocks, nnx.List):
        for block in blocks:
            x = block(x, rngs)
        return x
    graphdef, state = nnx.split(blocks)
    rngs_def, rngs_state = nnx.split(rngs)
    rates = _rates(blocks)
    # Rounded once, as dropout rounds a number of Python.
    keep_prob_L = None if rates is None else jnp.asarray(1.0 - np.asarray(rates, np.float64), float)

    def run_block(carry: tuple[jax.Array, Any], tensors: Any) -> tuple[tuple[jax.Array, Any], None]:
        x, rngs_state = carry
        state, keep_prob = tensors
        block, rngs = nnx.merge(graphdef, state), nnx.merge(rngs_def, rngs_state)
        if keep_prob is not None:
            block.drop_path = _DropPathOfOne(block.drop_path, keep_prob)
        x = each(block)(x, rngs)
        return (x, nnx.state(rngs)), None

    (x, rngs_state), _ = jax.lax.scan(run_block, (x, rngs_state), (state, keep_prob_L))
    if rngs is not None:
        nnx.update(rngs, rngs_state)  # they go on where the last block stopped
    return x


class _DropPathOfOne(nnx.Module):
    """Stochastic depth of one block in a scan, where its rate is known only as it runs.

    Rate 0 draws no key, as in `nnx.Dropout`, so that all blocks draw the keys that they would draw in a list.
    """

    def __init__(self, stack: DropPath, keep_prob: jax.Array) -> None:
        self.deterministic, self.broadcast_dims = stack.deterministic, stack.broadcast_dims
        self.keep_prob = nnx.data(keep_prob)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        if self.deterministic:
            return x
        if rngs is None:
            raise ValueError("stochastic depth needs rngs in training: pass rngs=nnx.Rngs(dropout=key) with the call")
        stream = rngs["dropout"]
        key, draws = jax.random.fold_in(stream.key[...], stream.count[...]), self.keep_prob < 1
        stream.count[...] += draws.astype(stream.count.dtype)
        shape = [1 if axis in self.broadcast_dims else size for axis, size in enumerate(x.shape)]
        mask = jnp.broadcast_to(jax.random.bernoulli(key, self.keep_prob, shape), x.shape)
        return jax.lax.select(mask, x / self.keep_prob.astype(x.dtype), jnp.zeros_like(x))


def _rates(stack: Any) -> tuple[float, ...] | None:
    """Rates of stochastic depth of all blocks in a stack; None where they share one."""
    rate = getattr(getattr(stack, "drop_path", None), "rate", None)
    return rate if isinstance(rate, tuple) else None


def _shapes(state: Any) -> tuple[Any, ...]:
    return tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(state))


def _length(state: Any) -> int:
    return jax.tree.leaves(state)[0].shape[0]


# --- Arrays by dotted name ----------------------------------------------------------------------------------


def is_stacked(name: str) -> bool:
    """Whether an array of this name holds a tensor of every block."""
    return _OF_STACK.fullmatch(name) is not None


def is_of_block(name: str) -> bool:
    """Whether this is the name of one block, or of something in it."""
    return _OF_BLOCK.match(name) is not None


def tensor_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the model's tensor in an array of this name and `shape`: that of one block where it is stacked."""
    return shape[1:] if is_stacked(name) else shape


def stack_arrays(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """`arrays` with those of all blocks stacked: `blocks.0.norm1.scale`, ... -> `blocks.norm1.scale`.

    What is stacked already stays as it is. Arrays of numpy stay numpy's.
    """
    found: dict[str, Any] = {}
    layers: dict[str, dict[int, Any]] = {}
    for name, array in arrays.items():
        if block := _OF_BLOCK.fullmatch(name):
            stacked = f"{STACK}.{block[2]}"
            found.setdefault(stacked)  # keeps its place
            layers.setdefault(stacked, {})[int(block[1])] = array
        else:
            found[name] = array
    for name, tensors in layers.items():
        in_order = [tensors[i] for i in sorted(tensors)]
        found[name] = (np if isinstance(in_order[0], np.ndarray) else jnp).stack(in_order)
    return found


def unstack_arrays(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """`arrays` with a name for every block, the inverse of `stack_arrays`; without a stack, all as they are."""
    stacked = {name: array for name, array in arrays.items() if is_stacked(name)}
    length = len(next(iter(stacked.values()), ()))
    found: dict[str, Any] = {}
    for name, array in arrays.items():
        if name not in stacked:
            found[name] = array
        elif f"{STACK}.0.{_inner(name)}" not in found:  # the first of them: here all blocks belong, in their order
            found |= {f"{STACK}.{i}.{_inner(key)}": stacked[key][i] for i in range(length) for key in stacked}
    return found


def _inner(name: str) -> str:
    return name.removeprefix(f"{STACK}.")
