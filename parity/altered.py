"""A flax model run with chosen random draws, and with something added to outputs of calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from parity.capture import ROOT, Key, Replace, jax_hooks
from parity.draws import Handed
from parity.jax_draws import handed_out
from parity.pieces import InPieces, Pieces, within

Altered = tuple[Handed | None, Mapping[Key, Sequence[Any]]]
"""The numbers of random draws (None: as they are drawn), and what is added to outputs of calls."""


def _altered(module: nnx.Module, args: Any, kwargs: Any, by: Altered) -> Any:
    draws, zeros = by
    with handed_out(module, draws), jax_hooks(module, lambda key, arrays: None, _adding(zeros)):
        return module(*args, **kwargs)


def altered_in_pieces(pieces: Pieces | None, model: nnx.Module, inputs: Sequence[jax.Array], by: Altered) -> Any:
    if pieces is None:
        return _altered(model, inputs, {}, by)
    draws, zeros = by

    def compute(key: Key, module: nnx.Module, args: Any, kwargs: Any) -> Any:
        # To its own output the hook that surrounds this adds; its own draws are made inside.
        own = {ROOT: draws[key]} if draws and key in draws else {}
        inner = None if draws is None else {**own, **within(key[0], draws)}
        return pieces(_altered, module, args, kwargs, (inner, within(key[0], zeros)))

    hooks = jax_hooks(model, lambda key, arrays: None, _adding(zeros), InPieces(pieces, compute))
    with handed_out(model, draws), hooks:
        return model(*inputs)


def _adding(zeros: Mapping[Key, Sequence[Any]]) -> Replace:
    def after(key: Key, outputs: list[jax.Array]) -> list[jax.Array] | None:
        return [x + zero for x, zero in zip(outputs, zeros[key], strict=True)] if key in zeros else None

    return after
