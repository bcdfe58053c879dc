"""What a flax model does, found without `parity`: outputs, gradients and training mode in float64.

Two halves of a pair that differ by a mistake are compared by it: only where the mistake changes something, a proof has
to see it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

QUICK: Any = {"xla_backend_optimization_level": 0}
"""Programs that run once are not worth more."""

HUGE = 1e6
"""Beyond this a number is no ordinary one: a mask writes it."""

CHANGED, SAME = 1e-9, 1e-12
"""A larger difference is a change, a smaller one rounding; between them nothing is said."""

Behaviour = dict[str, Any]
"""Name -> array, or text (the structure of the outputs)."""


def behaviour(model: nnx.Module, inputs: Sequence[np.ndarray], level: str) -> Behaviour:
    """What the model does on these inputs (flax's layout), as far as `level` looks at it."""
    with jax.enable_x64(True):
        double = _double(model)
        arrays = [_as_double(x) for x in inputs]
        parts: Any = nnx.split(double, _Trained(double), ...)
        graphdef, params, rest = parts

        def run(params: Any, rest: Any, arrays: Any) -> Any:
            # Variables made anew at this level of tracing: drawing counts what was drawn.
            built = nnx.merge(graphdef, params, jax.tree.map(lambda x: x, rest))
            built.eval()
            output = built(*arrays)
            return _scalar(output), output

        moving = (0, 2) if jnp.issubdtype(arrays[0].dtype, jnp.floating) else (0,)
        first, others = arrays[0], arrays[1:]
        if level == "forward":
            output = _once(lambda p, r, x: run(p, r, [x, *others])[1], params, rest, first)
            return _named("output", output)
        gradient = jax.value_and_grad(lambda p, r, x: run(p, r, [x, *others]), moving, has_aux=True)
        (_, output), grads = _once(gradient, params, rest, first)
        found = _named("output", output) | _gradients(grads)
        return found | (_trained(double, arrays) if level == "train" else {})


def derivative_holds(model: nnx.Module, inputs: Sequence[np.ndarray], steps: tuple[float, float], agree: float) -> bool:
    """Whether the derivative by the first input is what central differences of the forward pass say, of both steps."""
    gradient = behaviour(model, inputs, "gradients").get("gradient input")
    if gradient is None:
        return False
    direction = np.random.RandomState(0).standard_normal(gradient.shape)

    def value(step: float) -> float:
        output = behaviour(model, [inputs[0].astype(np.float64) + step * direction, *inputs[1:]], "forward")
        with jax.enable_x64(True):
            return float(_scalar([x for name, x in output.items() if name.startswith("output")]))

    found = float((gradient * direction).sum())
    return all(abs((value(h) - value(-h)) / (2 * h) - found) <= agree * abs(found) for h in steps)


def _once(function: Callable[..., Any], *arguments: Any) -> Any:
    return jax.jit(function).lower(*arguments).compile(QUICK)(*arguments)


def _gradients(grads: Any) -> Behaviour:
    params = {f"gradient {'.'.join(map(str, path))}": leaf[...] for path, leaf in nnx.to_flat_state(grads[0])}
    return {
        name: np.asarray(x) for name, x in (params | dict(zip(["gradient input"], grads[1:], strict=False))).items()
    }


def _trained(model: nnx.Module, arrays: Sequence[Any]) -> Behaviour:
    """Outputs of three calls in training mode, each with its own draws from the model's own streams."""
    graphdef, state = nnx.split(model)

    def run(state: Any, arrays: Any) -> Any:
        built = nnx.merge(graphdef, state)
        built.train()
        return [built(*arrays) for _ in range(3)]

    return _named("trained", _once(run, state, list(arrays)))


class _Trained:
    """Filter: parameters outside of what is frozen."""

    def __init__(self, model: nnx.Module) -> None:
        self._frozen = [path for path, module in nnx.iter_modules(model) if getattr(module, "frozen", False)]

    def __call__(self, path: Any, value: Any) -> bool:
        frozen = any(tuple(path[: len(outer)]) == tuple(outer) for outer in self._frozen)
        return issubclass(value.type, nnx.Param) and not frozen


def _as_double(x: Any) -> jax.Array:
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jnp.floating):
        return x.astype(jnp.float64)
    return x.astype(jnp.complex128) if jnp.issubdtype(x.dtype, jnp.complexfloating) else x


def _double(model: nnx.Module) -> nnx.Module:
    graphdef, state = nnx.split(model)
    moved = jax.tree.map(lambda x: _as_double(x) if jnp.issubdtype(x.dtype, jnp.inexact) else x, state)
    double = nnx.merge(graphdef, moved)
    for _, module in nnx.iter_modules(double):
        if getattr(module, "dtype", None) == jnp.float32:  # nnx.Embed casts to it
            module.dtype = jnp.float64  # type: ignore[attr-defined]
    return double


def _scalar(output: Any) -> jax.Array:
    """Linear and quadratic in every ordinary number, with coefficients of its own."""
    total = jnp.zeros(())
    for i, leaf in enumerate(jax.tree.leaves(output)):
        for part in (leaf.real, leaf.imag) if jnp.iscomplexobj(leaf) else (leaf,):
            linear, square = np.random.RandomState(i).standard_normal((2, *part.shape))
            part = jnp.where(jnp.abs(part) < HUGE, part, 0.0)
            total = total + (linear * part + square * part**2 / 2).sum()
    return total


def _named(name: str, output: Any) -> Behaviour:
    leaves = jax.tree_util.tree_leaves_with_path(output)
    arrays = {f"{name}{jax.tree_util.keystr(path)}": np.asarray(leaf) for path, leaf in leaves}
    return {f"structure of {name}": str(jax.tree.structure(output)), **arrays}


def difference(value: Behaviour, reference: Behaviour) -> float:
    """The largest difference of two behaviours: infinite for another structure, shape, or NaN on one side."""
    if value.keys() != reference.keys():
        return math.inf
    total = math.sqrt(
        sum(float((np.abs(x) ** 2).sum()) for name, x in reference.items() if name.startswith("gradient"))
    )
    return max(
        _distance(value[name], x, 1e-9 * total if name.startswith("gradient") else 0.0) for name, x in reference.items()
    )


def _distance(value: Any, reference: Any, floor: float) -> float:
    """The largest difference of two arrays, relative to each number and to the ordinary numbers around it."""
    if isinstance(reference, str):
        return 0.0 if value == reference else math.inf
    if value.shape != reference.shape or value.dtype != reference.dtype:
        return math.inf
    finite = np.isfinite(reference)
    if not np.array_equal(value[~finite], reference[~finite], equal_nan=True) or not np.isfinite(value[finite]).all():
        return math.inf
    a, b = value[finite], reference[finite]
    if not a.size or np.array_equal(a, b):
        return 0.0
    ordinary = np.abs(b[np.abs(b) < HUGE])
    scale = math.sqrt(float((ordinary**2).mean())) if ordinary.size else 0.0
    with np.errstate(divide="ignore"):
        return float((np.abs(a - b) / np.maximum(np.abs(b), max(scale, floor, 1e-300))).max())
