"""Notes on what passed without being verified: zeros or NaN on both sides, and gradients that are zero."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from parity.pairing.match_calls import Pair
from parity.runs.torch_side import Arrays, Gradients

NAMED = 5
"""Maximum number of names that a note lists."""


def unverified_layers(pairs: Sequence[Pair], references: Arrays) -> list[str]:
    """Return notes on modules whose output in PyTorch is zero everywhere or contains NaN.

    `references` are PyTorch's calls by JAX's keys. Where JAX's output differs, the row of the module fails anyway.
    """
    moving = {
        pair.name or "the output": [x for x in references[pair.jax].outputs if np.issubdtype(x.dtype, np.inexact)]
        for pair in pairs
    }
    zero = [name for name, found in moving.items() if found and not any(x.any() for x in found)]
    part = [
        f"{name} (output {i})"
        for name, found in moving.items()
        if len(found) > 1 and name not in zero
        for i, x in enumerate(found)
        if not x.any()
    ]
    nan = [
        f"{name} ({sum(int(np.isnan(x).sum()) for x in found)})"
        for name, found in moving.items()
        if any(np.isnan(x).any() for x in found)
    ]
    return _note("not verified, since zero everywhere on these inputs", [*zero, *part]) + _note(
        "NaN in PyTorch, left out where JAX has it in the same places (how many)", nan
    )


def unverified_gradients(wanted: Gradients, given: Gradients) -> list[str]:
    """Return notes on parameters and inputs whose gradient is exactly zero on both sides."""
    zero = [name for name, g in wanted.params.items() if not g.any() and not given.params[name].any()]
    pairs = enumerate(zip(wanted.inputs, given.inputs, strict=True))
    zero += [f"input {i}" for i, (a, b) in pairs if not a.any() and not b.any()]
    return _note("gradients not verified, since zero everywhere on both sides", zero)


def unverified_zeros(names: Sequence[str]) -> list[str]:
    """Return a note on tensors that are zero up to rounding on both sides (`parity.measure.cancellation`)."""
    return _note("not verified, since zero up to rounding on both sides", dict.fromkeys(names))


def cancelled(names: Sequence[str]) -> list[str]:
    """Return a note on tensors in which large terms cancel (`parity.measure.cancellation`)."""
    found = dict.fromkeys(name or "the model" for name in names)
    return _note("large terms cancel, so held to 2^-23 of PyTorch's float32 error", found)


def _note(text: str, names: Collection[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return [f"{text}: {', '.join(list(names)[:NAMED])}{more}"]
