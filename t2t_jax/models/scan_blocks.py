"""Identical blocks stacked into one, every tensor with a leading axis over the blocks, and run by a scan.

A program with a scan contains the block once regardless of the depth, so it compiles as fast as a single block. The
stack replaces the list: `blocks.3.attn.qkv.kernel` (C, 3 C) becomes `blocks.attn.qkv.kernel[3]` of (L, C, 3 C).
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
"""Name of the model attribute that holds the blocks, as a list or as a stack."""

_OF_BLOCK = re.compile(rf"{STACK}\.(\d+)(?:\.(.+))?")
_OF_STACK = re.compile(rf"{STACK}\.(?!\d+\.)(.+)")


# --- Models -------------------------------------------------------------------------------------------------


def stack_blocks(model: Any) -> Any:
    """Replace the list of blocks of `model` in place by one block with stacked tensors, as `nnx.vmap` would create it.

    Raises:
        ValueError: If the blocks differ in more than the stochastic depth rate.
    """
    blocks = list(model.blocks)
    rates = tuple(block.drop_path.rate if hasattr(block, "drop_path") else 0.0 for block in blocks)
    for block in blocks:
        if hasattr(block, "drop_path") and len(set(rates)) > 1:
            block.drop_path.rate = rates
    graphdefs, states = zip(*(nnx.split(block) for block in blocks), strict=True)
    if any(graphdef != graphdefs[0] for graphdef in graphdefs) or len({_shapes(state) for state in states}) > 1:
        raise ValueError(
            f"the blocks of {type(model).__name__} differ, so they cannot run in a scan: use scan_blocks=False"
        )
    model.blocks = nnx.merge(graphdefs[0], jax.tree.map(lambda *tensors: jnp.stack(tensors), *states))
    return model


def unstack_blocks(model: Any) -> Any:
    """Replace the stack of blocks of `model`, if it has one, in place by a list; the inverse of `stack_blocks`."""
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
    """Apply a list of blocks, or a stack of blocks by a scan, to x (B, N, C), with the same result and dropout.

    Args:
        blocks: List or stack of a model's blocks.
        x: Tokens.
        rngs: Random streams, of which training uses `dropout`.
        each: Wrapper for a block of a stack; its result is called instead of the block.
    """
    if isinstance(blocks, nnx.List):
        for block in blocks:
            x = block(x, rngs)
        return x
    graphdef, state = nnx.split(blocks)
    rngs_def, rngs_state = nnx.split(rngs)
    rates = _rates(blocks)
    # Rounded once, as `nnx.Dropout` rounds a Python number.
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
        nnx.update(rngs, rngs_state)  # continue the streams after the last block
    return x


class _DropPathOfOne(nnx.Module):
    """Stochastic depth of one block in a scan, with the rate as a traced value.

    As in `nnx.Dropout`, rate 0 consumes no key, so that every block uses the same keys as in a list.
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
    """Return the stochastic depth rates of the blocks in a stack, or None if all have the same rate."""
    rate = getattr(getattr(stack, "drop_path", None), "rate", None)
    return rate if isinstance(rate, tuple) else None


def _shapes(state: Any) -> tuple[Any, ...]:
    return tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(state))


def _length(state: Any) -> int:
    return jax.tree.leaves(state)[0].shape[0]


# --- Arrays by dotted name ----------------------------------------------------------------------------------


def is_stacked(name: str) -> bool:
    """Return whether the array called `name` holds a tensor of all blocks."""
    return _OF_STACK.fullmatch(name) is not None


def is_of_block(name: str) -> bool:
    """Return whether `name` is that of a single block or of something in it."""
    return _OF_BLOCK.match(name) is not None


def tensor_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the model's tensor for an array of this name and shape: without the axis over the blocks."""
    return shape[1:] if is_stacked(name) else shape


def tensor_of_block(name: str, block: int) -> str:
    """Return the name of one block's tensor in a stacked array: `blocks.norm1.scale` -> `blocks.3.norm1.scale`."""
    return f"{STACK}.{block}.{_inner(name)}"


def stack_arrays(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Stack the arrays of all blocks: `blocks.0.norm1.scale`, ... -> `blocks.norm1.scale`.

    Arrays that are already stacked are unchanged. NumPy arrays remain NumPy arrays.
    """
    found: dict[str, Any] = {}
    layers: dict[str, dict[int, Any]] = {}
    for name, array in arrays.items():
        if block := _OF_BLOCK.fullmatch(name):
            stacked = f"{STACK}.{block[2]}"
            found.setdefault(stacked)  # reserve its position
            layers.setdefault(stacked, {})[int(block[1])] = array
        else:
            found[name] = array
    for name, tensors in layers.items():
        in_order = [tensors[i] for i in sorted(tensors)]
        found[name] = (np if isinstance(in_order[0], np.ndarray) else jnp).stack(in_order)
    return found


def unstack_arrays(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Split stacked arrays into one per block; the inverse of `stack_arrays`. Other arrays are unchanged."""
    stacked = {name: array for name, array in arrays.items() if is_stacked(name)}
    length = len(next(iter(stacked.values()), ()))
    found: dict[str, Any] = {}
    for name, array in arrays.items():
        if name not in stacked:
            found[name] = array
        elif f"{STACK}.0.{_inner(name)}" not in found:  # first stacked array: insert all blocks, in order
            found |= {f"{STACK}.{i}.{_inner(key)}": stacked[key][i] for i in range(length) for key in stacked}
    return found


def _inner(name: str) -> str:
    return name.removeprefix(f"{STACK}.")
