"""Run a flax model with given random draws, and with zeros added to call outputs to obtain their gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from parity.random_draws.jax_draws import handed_out
from parity.random_draws.matching import Handed
from parity.recording.capture import ROOT, Key, Replace
from parity.recording.inputs import Apply, positional
from parity.recording.transformations import watched
from parity.runs.compiled_blocks import BlockDispatcher, CompiledBlocks, within

Altered = tuple[Handed | None, Mapping[Key, Sequence[Any]]]
"""The values of random draws (None: the model draws them), and the arrays to add to call outputs."""


def _altered(module: nnx.Module, args: Any, kwargs: Any, by: Altered) -> Any:
    draws, zeros = by
    with handed_out(module, draws):
        return watched(module, _unchanged, _adding(zeros))(*args, **kwargs)


def altered_in_blocks(
    blocks: CompiledBlocks | None,
    model: nnx.Module,
    inputs: Sequence[jax.Array],
    by: Altered,
    apply: Apply = positional,
) -> Any:
    """Return the output of the model, compiled in `blocks` if given."""
    if blocks is None:
        return apply(lambda *args, **kwargs: _altered(model, args, kwargs, by), inputs)
    draws, zeros = by

    def compute(key: Key, module: nnx.Module, args: Any, kwargs: Any) -> Any:
        # The outer hook adds to the block's own output; the block's own draws happen inside.
        own = {ROOT: draws[key]} if draws and key in draws else {}
        inner = None if draws is None else {**own, **within(key[0], draws)}
        return blocks(_altered, module, args, kwargs, (inner, within(key[0], zeros)))

    with handed_out(model, draws):
        return apply(watched(model, _unchanged, _adding(zeros), inside=BlockDispatcher(blocks, compute)), inputs)


def _unchanged(key: Key, arrays: list[jax.Array]) -> None:
    return None


def _adding(zeros: Mapping[Key, Sequence[Any]]) -> Replace:
    def after(key: Key, outputs: list[jax.Array]) -> list[jax.Array] | None:
        if key not in zeros:
            return None
        pairs = zip(outputs, zeros[key], strict=True)
        return [x + (zero if jnp.iscomplexobj(x) else zero.real) for x, zero in pairs]

    return after
