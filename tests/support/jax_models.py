"""What tests of flax models share: a compiled call, random images, and a look into what is computed."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend.core import jaxprs_in_params


def normal(*shape: int, seed: int = 1, dtype: Any = np.float32) -> jax.Array:
    """Standard normal numbers."""
    return jnp.asarray(np.random.RandomState(seed).standard_normal(shape), dtype)


def apply(model: nnx.Module, *args: Any, key: int | None = None) -> Any:
    """`model(*args)`, compiled; with `key`, dropout draws from it."""
    graphdef, state = nnx.split(model)
    return _run(graphdef, state, args, None if key is None else jax.random.key(key))


@functools.partial(jax.jit, static_argnums=0)
def _run(graphdef: nnx.GraphDef, state: nnx.State, args: tuple[Any, ...], key: jax.Array | None) -> Any:
    model = nnx.merge(graphdef, state)
    return model(*args) if key is None else model(*args, rngs=nnx.Rngs(dropout=key))


def variables(model: nnx.Module) -> dict[str, nnx.Variable]:
    """Dotted path -> variable."""
    return {".".join(map(str, path)): v for path, v in nnx.to_flat_state(nnx.state(model))}


def modules(model: nnx.Module, kind: type[nnx.Module]) -> dict[str, Any]:
    """Dotted path -> module, of one kind."""
    return {".".join(map(str, path)): m for path, m in nnx.iter_modules(model) if isinstance(m, kind)}


def abstract(make: Callable[[], nnx.Module]) -> Any:
    """The model with shapes for arrays: nothing is drawn."""
    return nnx.eval_shape(make)


def primitive_dtypes(function: Callable[..., Any], *args: Any) -> dict[str, set[str]]:
    """For each primitive that `function` runs, the dtypes of its results."""
    found: dict[str, set[str]] = defaultdict(set)
    for equation in equations(jax.make_jaxpr(function)(*args).jaxpr):
        found[equation.primitive.name] |= {str(v.aval.dtype) for v in equation.outvars}
    return found


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a program, those inside others too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)
