"""Outputs of calls changed on their way: multiplied (dropout with chosen draws), or a zero added for its gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from parity.capture import Key, Replace
from parity.inputs import Apply, positional
from parity.pieces import InPieces, Pieces, within
from parity.transformed import watched

Masks = Mapping[Key, np.ndarray]
"""What the output of a call is multiplied with (dropout with chosen draws)."""

Altered = tuple[Masks, Mapping[Key, Sequence[Any]]]
"""What outputs of calls are multiplied with, and what is added then."""


def _altered(module: nnx.Module, args: Any, kwargs: Any, by: Altered) -> Any:
    return watched(module, lambda key, arrays: None, _altering(by))(*args, **kwargs)


def altered_in_pieces(
    pieces: Pieces | None, model: nnx.Module, inputs: Sequence[jax.Array], by: Altered, apply: Apply = positional
) -> Any:
    if pieces is None:
        return apply(lambda *args, **kwargs: _altered(model, args, kwargs, by), inputs)

    def compute(key: Key, module: nnx.Module, args: Any, kwargs: Any) -> Any:
        # Its own output is altered by the hook that surrounds this.
        return pieces(_altered, module, args, kwargs, tuple(within(key[0], values) for values in by))

    return apply(watched(model, lambda key, arrays: None, _altering(by), inside=InPieces(pieces, compute)), inputs)


def _altering(by: Altered) -> Replace:
    masks, zeros = by

    def after(key: Key, outputs: list[jax.Array]) -> list[jax.Array] | None:
        if key in masks:
            outputs = [x * jnp.asarray(masks[key], x.dtype) for x in outputs]
        if key in zeros:
            pairs = zip(outputs, zeros[key], strict=True)
            outputs = [x + (zero if jnp.iscomplexobj(x) else zero.real) for x, zero in pairs]
        return outputs

    return after
