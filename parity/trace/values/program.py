"""The program of a JAX model: traced, in float64, without the casts that are by design."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend.core import ClosedJaxpr

from parity.precision.wide_jax import widened
from parity.recording.structure import tensors
from parity.runs.jax_side import JaxSide
from parity.runs.losses import Loss


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

        return _program(side, forward, state, side.inputs(arrays))


def traced_gradients(side: JaxSide, arrays: Sequence[np.ndarray], loss: Loss) -> Program:
    """Trace the computation of the loss and its gradients by all floating weights and inputs."""
    with side.switches(), jax.disable_jit(False):
        graphdef, state = nnx.split(side.model)
        leaves, tree = jax.tree.flatten((state, side.inputs(arrays)))
        moving = [i for i, x in enumerate(leaves) if jnp.issubdtype(x.dtype, jnp.inexact)]

        def value(moved: list[jax.Array]) -> jax.Array:
            new = dict(zip(moving, moved, strict=True))
            state, inputs = jax.tree.unflatten(tree, [new.get(i, x) for i, x in enumerate(leaves)])
            return loss.jax(side.apply(nnx.merge(graphdef, state), inputs))

        return _program(side, jax.value_and_grad(value), [leaves[i] for i in moving])


def _program(side: JaxSide, function: Callable[..., Any], *arguments: Any) -> Program:
    if side.widens and side.design is not None:
        function = widened(function, side.precision, side.design.allows, side.design.scalars)
    return Program(jax.make_jaxpr(function)(*arguments), jax.tree.leaves(arguments))
