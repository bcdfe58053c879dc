"""A flax model run with the outputs of chosen calls changed: multiplied with a mask, or with a zero added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from parity.capture import Key, Replace, jax_hooks
from parity.pieces import InPieces, Pieces, within

Masks = Mapping[Key, np.ndarray]
"""What the output of a call is multiplied with (dropout with chosen draws)."""

Altered = tuple[Masks, Mapping[Key, Sequence[Any]]]
"""What outputs of calls are multiplied with, and what is added then."""


def _altered(module: nnx.Module, args: Any, kwargs: Any, by: Altered) -> Any:
    with jax_hooks(module, lambda key, arrays: None, _altering(by)):
        return module(*args, **kwargs)


def altered_in_pieces(pieces: Pieces | None, model: nnx.Module, inputs: Sequence[jax.Array], by: Altered) -> Any:
    if pieces is None:
        return _altered(model, inputs, {}, by)

    def compute(key: Key, module: nnx.Module, args: Any, kwargs: Any) -> Any:
        # Its own output is altered by the hook that surrounds this.
        return pieces(_altered, module, args, kwargs, tuple(within(key[0], values) for values in by))

    with jax_hooks(model, lambda key, arrays: None, _altering(by), InPieces(pieces, compute)):
        return model(*inputs)


def _altering(by: Altered) -> Replace:
    masks, zeros = by

    def after(key: Key, outputs: list[jax.Array]) -> list[jax.Array] | None:
        if key in masks:
            outputs = [x * jnp.asarray(masks[key], x.dtype) for x in outputs]
        if key in zeros:
            outputs = [x + zero for x, zero in zip(outputs, zeros[key], strict=True)]
        return outputs

    return after
