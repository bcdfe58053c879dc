"""Comparison of two optax transformations by the steps that they take from given states."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from optax.schedules import InjectStatefulHyperparamsState

from parity.carry.arrays import first_line
from parity.measure.gates import norm, relative
from parity.optimizer_state.state import dotted_name

GATE = 1e-9
"""Maximum relF between the steps of equal rules: float64 rounding, amplified where moments cancel."""

GATE_INJECTED = 1e-4
"""The same if optax stores betas and decays in float32: 1 - 0.999 then has a relative error of 1.3e-5."""

SIZES = (1e-4, 3e-5, 2e-4, 1e-5)
"""Norm of the gradients of each step: below the limit of any usual clipping, which PyTorch does elsewhere."""


def compare_transformations(
    ours: Any, theirs: Any, params: Any, groups: Mapping[str, int | None]
) -> tuple[str | None, dict[int, float]]:
    """Compare the steps of two (tx, state) on the same gradients, in float64 and from fixed parameters.

    The learning rate is a factor of the steps of a group, and is told apart from the rest.

    Args:
        groups: The group of each leaf of `params`, by name; None: `ours` does not update it.

    Returns:
        The difference in words (None: the steps agree up to the learning rates), and per group the learning rate of
        `theirs` divided by that of `ours`.
    """
    with jax.enable_x64(True):
        wide = jax.tree.map(_double, params)
        gradients = [jax.tree_util.tree_map_with_path(_drawn(i, wide), wide) for i in range(len(SIZES))]
        mine = _steps(ours, wide, gradients)
        try:
            found = _steps(theirs, wide, gradients)
        except (ValueError, TypeError) as error:
            return f"it did not run on gradients and parameters alone ({first_line(error)[:150]})", {}
    gate = GATE_INJECTED if _injected(theirs.state) else GATE
    rates: dict[int, float] = {}
    for step, (a, b) in enumerate(zip(mine, found, strict=True), 1):
        for i in dict.fromkeys(groups.values()):
            names = [name for name in groups if groups[name] == i]
            x, y = (np.concatenate([side[name].ravel() for name in names]) for side in (a, b))
            if i is None:
                if y.any():
                    return f"it updates {names[0]}, which PyTorch does not", {}
                continue
            factor = float(np.dot(x, y) / max(np.dot(x, x), 1e-300))
            apart = relative(norm(y - factor * x), norm(x) * abs(factor))
            if not factor > 0 or not apart <= gate:
                largest = max(names, key=lambda name: norm(b[name] - factor * a[name]))
                shown = "their directions have nothing in common" if not factor > 0 else f"they differ by {apart:.1e}"
                return f"in step {step} from this state {shown}, most in {largest}", {}
            rates.setdefault(i, factor)
    return None, rates


def _steps(optimizer: Any, params: Any, gradients: list[Any]) -> list[dict[str, np.ndarray]]:
    state, found = jax.tree.map(_double, optimizer.state), []
    for given in gradients:
        updates, state = optimizer.tx.update(given, state, params)
        found.append({dotted_name(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(updates)})
    return found


def _drawn(step: int, params: Any) -> Any:
    """Return a function that draws the gradient of a leaf."""
    size = SIZES[step] / math.sqrt(max(sum(x.size for x in jax.tree.leaves(params)), 1))

    def draw(path: Any, x: Any) -> jax.Array:
        random = np.random.RandomState(zlib.crc32(f"{dotted_name(path)} {step}".encode()))
        return jnp.asarray(size * random.standard_normal(x.shape))

    return draw


def _double(x: Any) -> jax.Array:
    """Convert a leaf to float64 if it is floating."""
    array = np.asarray(x)
    return jnp.asarray(array.astype(np.float64) if jnp.issubdtype(array.dtype, jnp.floating) else array)


def _injected(state: Any) -> bool:
    leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, InjectStatefulHyperparamsState))
    return any(isinstance(x, InjectStatefulHyperparamsState) for x in leaves)
