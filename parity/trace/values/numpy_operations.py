"""The most frequent operations of JAX programs in NumPy.

JAX compiles every operation for every shape before it runs; a program that is run equation by equation once or twice
would spend most of its time on that. Operations that are not in this table, and other dtypes, run in JAX.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

DTYPES = frozenset(map(np.dtype, ("float64", "float32", "bool", "int32", "int64")))

_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "add_any": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "max": np.maximum,
    "min": np.minimum,
    "neg": np.negative,
    "exp": np.exp,
    "exp2": np.exp2,
    "log": np.log,
    "log1p": np.log1p,
    "expm1": np.expm1,
    "tanh": np.tanh,
    "sin": np.sin,
    "cos": np.cos,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "logistic": lambda x: 1 / (1 + np.exp(-x)),
    "abs": np.abs,
    "sign": np.sign,
    "square": np.square,
    "floor": np.floor,
    "ceil": np.ceil,
    "is_finite": np.isfinite,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "stop_gradient": lambda x: x,
    "copy": lambda x: x,
    "copy_p": lambda x: x,
}

_FLOATS: dict[str, Callable[..., Any]] = {"div": np.divide, "pow": np.power}
"""Operations that differ from NumPy's for integers."""

_LOGICAL: dict[str, Callable[..., Any]] = {
    "and": np.logical_and,
    "or": np.logical_or,
    "not": np.logical_not,
    "xor": np.logical_xor,
}
"""Operations that are logical for booleans only."""


def _broadcast_in_dim(x: np.ndarray, *, shape: Any, broadcast_dimensions: Any, **_: Any) -> np.ndarray:
    sizes = [1] * len(shape)
    for own, axis in enumerate(broadcast_dimensions):
        sizes[axis] = x.shape[own]
    return np.broadcast_to(x.reshape(sizes), shape)


def _iota(*_: np.ndarray, dtype: Any, shape: Any, dimension: int, **__: Any) -> np.ndarray:
    sizes = [n if axis == dimension else 1 for axis, n in enumerate(shape)]
    return np.broadcast_to(np.arange(shape[dimension], dtype=dtype).reshape(sizes), shape)


def _slice(x: np.ndarray, *, start_indices: Any, limit_indices: Any, strides: Any, **_: Any) -> np.ndarray:
    steps = strides or [1] * x.ndim
    return x[tuple(slice(a, b, c) for a, b, c in zip(start_indices, limit_indices, steps, strict=True))]


def _split(x: np.ndarray, *, sizes: Any, axis: int, **_: Any) -> list[np.ndarray]:
    return np.split(x, np.cumsum(sizes)[:-1], axis)


def _dot_general(
    x: np.ndarray, y: np.ndarray, *, dimension_numbers: Any, preferred_element_type: Any = None, **_: Any
) -> np.ndarray:
    """Multiply matrices; the result has the batch axes first, then the free axes of x and of y."""
    (contracted, of_y), (batch, batch_of_y) = dimension_numbers
    free = [i for i in range(x.ndim) if i not in contracted and i not in batch]
    free_of_y = [i for i in range(y.ndim) if i not in of_y and i not in batch_of_y]
    lead, terms = [x.shape[i] for i in batch], [x.shape[i] for i in contracted]
    rows, columns = [x.shape[i] for i in free], [y.shape[i] for i in free_of_y]
    a = x.transpose([*batch, *free, *contracted]).reshape([*lead, math.prod(rows), math.prod(terms)])
    b = y.transpose([*batch_of_y, *of_y, *free_of_y]).reshape([*lead, math.prod(terms), math.prod(columns)])
    return np.matmul(a, b, dtype=preferred_element_type).reshape([*lead, *rows, *columns])


def _cumsum(x: np.ndarray, *, axis: int, reverse: bool, **_: Any) -> np.ndarray:
    return np.flip(np.cumsum(np.flip(x, axis), axis), axis) if reverse else np.cumsum(x, axis)


def _select_n(which: np.ndarray, *cases: np.ndarray, **_: Any) -> np.ndarray:
    return np.where(which, cases[1], cases[0])


_OTHER: dict[str, Callable[..., Any]] = {
    "broadcast_in_dim": _broadcast_in_dim,
    "clamp": lambda low, x, high, **_: np.minimum(np.maximum(x, low), high),
    "concatenate": lambda *xs, dimension, **_: np.concatenate(xs, dimension),
    "convert_element_type": lambda x, **_: x,
    "cumsum": _cumsum,
    "dot_general": _dot_general,
    "integer_pow": lambda x, *, y, **_: x**y,
    "iota": _iota,
    "reduce_max": lambda x, *, axes, **_: x.max(tuple(axes)),
    "reduce_min": lambda x, *, axes, **_: x.min(tuple(axes)),
    "reduce_sum": lambda x, *, axes, **_: x.sum(tuple(axes)),
    "reshape": lambda x, *, new_sizes, **_: x.reshape(new_sizes),
    "select_n": _select_n,
    "rev": lambda x, *, dimensions, **_: np.flip(x, tuple(dimensions)),
    "slice": _slice,
    "split": _split,
    "squeeze": lambda x, *, dimensions, **_: np.squeeze(x, tuple(dimensions)),
    "transpose": lambda x, *, permutation, **_: x.transpose(permutation),
}


def evaluate(eqn: Any, given: Sequence[Any]) -> list[np.ndarray] | None:
    """Return the results of an equation; None if this table does not have its operation for these dtypes."""
    name = eqn.primitive.name
    results = [v.aval for v in eqn.outvars]
    if not all(_numbers(x) for x in (*given, *results)):
        return None
    arrays = [np.asarray(x) for x in given]
    if not _has(name, arrays, [x.dtype for x in results]):
        return None
    with np.errstate(all="ignore"):
        if name in _OTHER:
            found = _OTHER[name](*arrays, **eqn.params)
        else:
            found = (_ELEMENTWISE.get(name) or _FLOATS.get(name) or _LOGICAL[name])(*arrays)
        listed = found if isinstance(found, list) else [found]
        return [np.asarray(x).astype(aval.dtype, copy=False) for x, aval in zip(listed, results, strict=True)]


def _numbers(x: Any) -> bool:
    """Whether a value or its type is of numbers that NumPy computes with as JAX does: no keys, no bfloat16."""
    return getattr(x, "dtype", None) in DTYPES or isinstance(x, int | float)


def _has(name: str, arrays: Sequence[np.ndarray], dtypes: Sequence[np.dtype]) -> bool:
    if name in _ELEMENTWISE:
        return True
    if name in _FLOATS or name in ("integer_pow", "dot_general"):
        return all(x.dtype.kind == "f" for x in arrays)
    if name == "convert_element_type":  # of floats beyond the range of integers, XLA makes the largest integer
        return arrays[0].dtype.kind != "f" or dtypes[0].kind != "i"
    if name in _LOGICAL:
        return all(x.dtype == bool for x in arrays)
    if name == "select_n":
        return len(arrays) == 3 and arrays[0].dtype == bool
    if name in ("reduce_max", "reduce_min"):
        return all(x.size > 0 for x in arrays)
    if name == "iota":
        return not arrays
    return name in _OTHER
