"""The program of a JAX model: traced, in float64, without the casts that are by design."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.extend.core import ClosedJaxpr

from parity.precision.wide_jax import widened
from parity.recording.structure import tensors
from parity.runs.jax_side import JaxSide


@dataclasses.dataclass(frozen=True)
class Program:
    """A traced program and the arrays to run it with."""

    closed: ClosedJaxpr
    arguments: Sequence[Any]


def traced(side: JaxSide, arrays: Sequence[np.ndarray]) -> Program:
    """Trace the model's forward pass."""
    with side.switches(), jax.disable_jit(False):
        graphdef, state = nnx.split(side.model)

        def forward(state: nnx.State, inputs: Any) -> list[jax.Array]:
            return tensors(side.apply(nnx.merge(graphdef, state), inputs))

        function = forward
        if side.widens and side.design is not None:
            function = widened(forward, side.precision, side.design.allows, side.design.scalars)
        arguments = state, side.inputs(arrays)
        return Program(jax.make_jaxpr(function)(*arguments), jax.tree.leaves(arguments))
