"""Random draws that the output of a traced program depends on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from jax.extend.core import ClosedJaxpr
from jax.interpreters import partial_eval

from parity.precision.jax_casts import Scope, programs

DRAWS = frozenset(
    {"random_bits", "random_gamma", "rng_uniform", "rng_bit_generator", "threefry2x32"},
)
"""JAX primitives that draw random numbers."""


def refuse_draws(closed: ClosedJaxpr, title: str) -> None:
    """Raise ValueError if the program's outputs depend on random numbers, naming the source lines that draw them.

    No numbers of PyTorch could agree with them. Draws without effect, as of a dropout that is switched off, are fine.
    """
    used, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    lines = sorted(set(_draws(used, Scope())))
    if lines:
        more = f" and {len(lines) - 2} more" if len(lines) > 2 else ""
        raise ValueError(
            f"JAX's {title} draws random numbers ({', '.join(lines[:2])}{more}), which PyTorch cannot draw: switch "
            "that off, or pass the numbers as an input"
        )


def _draws(jaxpr: Any, outer: Scope) -> Iterator[str]:
    for eqn in jaxpr.eqns:
        scope = outer.at(eqn)
        if eqn.primitive.name in DRAWS:
            source = scope.source
            yield f"{os.path.basename(source[0])}:{source[2]}" if source else "?"
        for program in programs(eqn):
            yield from _draws(program, scope)
