"""Record or replace the random draws of a flax model; may be traced.

A model may refer to the functions of `jax.random` by any name (`from jax.random import bernoulli`, a method of flax's
`Rngs`), so interception replaces the code objects of these functions, not a name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import itertools
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from parity.random_draws.matching import SILENT, Handed, Law, Marked, Numbers, Table
from parity.recording.capture import Key
from parity.recording.transformations import call_hooks

INSIDE = "jax._src.random"
"""Calls between functions of `jax.random` in this module count as one draw, not two."""

for _mark in (Marked, Table):
    jax.tree_util.register_static(_mark)

_context = jax.make_user_context(None)
_contexts = itertools.count(1)
"""Context ids: functions jitted by a model are retraced in each context."""


class Source(Protocol):
    """Source of the values of random draws.

    `numbers` returns the values of one draw, None if the model draws them itself, or SILENT if `silent` allows the draw
    to be skipped.
    """

    def numbers(self, law: Law, keep: Any, key: Callable[[], Any], shape: tuple[int, ...], *, silent: bool) -> Any: ...


class Given:
    """Source of given values, per call; draws without given values are replaced by neutral ones that drop nothing."""

    def __init__(self, handed: Handed) -> None:
        self._handed, self._around = handed, [("", 0)]
        self._count: dict[Key, int] = {}

    def entered(self, key: Key, arrays: Any) -> None:
        self._around.append(key)

    def left(self, key: Key, arrays: Any) -> None:
        self._around.pop()

    def numbers(self, law: Law, keep: Any, key: Callable[[], Any], shape: tuple[int, ...], *, silent: bool) -> Any:
        call = self._around[-1]
        index = self._count.get(call, 0)
        self._count[call] = index + 1
        given = self._handed.get(call, ())
        found = given[index] if index < len(given) else SILENT
        if found is SILENT:
            return SILENT if silent else nothing(law, keep, shape)
        if isinstance(found, Table):
            return _looked_up(found, law, key(), shape)
        return None if isinstance(found, Marked) else found


def _looked_up(table: Table, law: Law, key: Any, shape: tuple[int, ...]) -> Any:
    """Look up the values of a draw inside `vmap` or `scan` by its key, at run time."""
    dtype = jax.dtypes.canonicalize_dtype(float)
    otherwise = 0.0 if law.kind == "normal" else 0.5 if law.keep is None else law.keep / 2

    count = np.dtype(dtype).itemsize // 4

    def lookup(keys: Any) -> np.ndarray:
        found = table.lookup(np.asarray(keys), shape, otherwise).astype(dtype)
        return np.ascontiguousarray(found[..., None]).view(np.uint32)

    # Passed as 32-bit words: the callback runs in a thread that may have 64-bit types disabled.
    result = jax.ShapeDtypeStruct((*shape, count), np.uint32)
    words = jax.pure_callback(lookup, result, jax.random.key_data(key), vmap_method="broadcast_all")
    return jax.lax.bitcast_convert_type(words if count > 1 else words[..., 0], dtype)


def nothing(law: Law, keep: Any, shape: tuple[int, ...]) -> Any:
    """Return values with which a draw keeps everything."""
    value = 0.0 if law.kind == "normal" else 0.5 if keep is None else keep / 2
    return jnp.broadcast_to(jnp.asarray(value, float), shape)


# ---- drawing functions ----


@dataclasses.dataclass(frozen=True)
class _Draw:
    """One drawing function: its distribution, shape, conversion to the result, and a mask's probability of a 1."""

    law: Law
    shape: tuple[int, ...]
    fill: Callable[[Any], Any]
    keep: Any = None


def _shape(given: Any) -> tuple[int, ...]:
    return tuple(given["shape"]) if isinstance(given["shape"], Sequence) else (given["shape"],)


def _dtype(given: Any) -> Any:
    return jax.dtypes.canonicalize_dtype(float if given["dtype"] is None else given["dtype"])


def _bernoulli(p: Any, shape: tuple[int, ...]) -> _Draw:
    known = None if isinstance(p, jax.core.Tracer) or np.size(p) != 1 else float(np.asarray(p).reshape(()))

    def fill(u: Any) -> Any:
        return jnp.asarray(u) < jnp.broadcast_to(p, shape)

    return _Draw(Law("bernoulli", known), shape, fill, p)


def _parse(name: str, given: Any) -> _Draw | None:
    """Return the draw of a `jax.random` function, given its arguments by name; None if it cannot be replaced."""
    match name:
        case "bernoulli":
            p = given["p"]
            return _bernoulli(p, tuple(np.shape(p)) if given["shape"] is None else _shape(given))
        case "rademacher":
            half = _bernoulli(0.5, _shape(given))
            return dataclasses.replace(half, fill=lambda u: (2 * half.fill(u) - 1).astype(given["dtype"] or int))
        case "uniform":
            low, high, dtype = given["minval"], given["maxval"], _dtype(given)
            return _Draw(Law("uniform"), _shape(given), lambda u: jnp.asarray(low + (high - low) * u, dtype))
        case "normal" if not jnp.issubdtype(_dtype(given), jnp.complexfloating):
            return _Draw(Law("normal"), _shape(given), lambda z: jnp.asarray(z, _dtype(given)))
        case "exponential":
            return _Draw(Law("exponential"), _shape(given), lambda u: -jnp.log(jnp.asarray(u, _dtype(given))))
        case "gumbel":
            return _Draw(Law("gumbel"), _shape(given), lambda u: _gumbel(u, _dtype(given)))
        case "categorical" if given["shape"] is None and given.get("replace", True):
            logits, axis = given["logits"], given["axis"]
            return _Draw(Law("gumbel"), tuple(logits.shape), lambda u: (logits + _gumbel(u, logits.dtype)).argmax(axis))
        case "randint":
            low, high = given["minval"], given["maxval"]
            dtype = jax.dtypes.canonicalize_dtype(given["dtype"] or int)
            return _Draw(Law("integers"), _shape(given), lambda u: jnp.floor(low + (high - low) * u).astype(dtype))
        case "permutation" if not given["independent"]:
            x, axis = given["x"], given["axis"]
            n = x if isinstance(x, int) else np.shape(x)[axis]
            return _Draw(
                Law("permutation"),
                (n,),
                lambda u: jnp.argsort(u) if isinstance(x, int) else jnp.take(x, jnp.argsort(u), axis),
            )
    return None


def _gumbel(u: Any, dtype: Any) -> Any:
    return -jnp.log(-jnp.log(jnp.asarray(u, dtype)))


NAMES = (
    *("bernoulli", "rademacher", "uniform", "normal", "exponential", "gumbel", "categorical", "randint"),
    "permutation",
)


def _called(name: str, args: Any, kwargs: Any) -> Any:
    """Replacement of a function of `jax.random`."""
    original = _originals[name]
    sources = getattr(_local, "sources", None)
    if not sources or str(sys._getframe(2).f_globals.get("__name__", "")).startswith(INSIDE):
        return original(*args, **kwargs)
    bound = inspect.signature(original).bind(*args, **kwargs)
    bound.apply_defaults()
    draw = _parse(name, bound.arguments)
    if draw is None or 0 in draw.shape:
        return original(*args, **kwargs)
    found = sources[-1].numbers(draw.law, draw.keep, lambda: bound.arguments["key"], draw.shape, silent=False)
    return original(*args, **kwargs) if found is None else draw.fill(found)


def _dropout(args: Any, kwargs: Any) -> Any:
    """Replacement of `nnx.Dropout.__call__`: with given values it needs no generator."""
    original = _originals["dropout"]
    sources = getattr(_local, "sources", None)
    bound = inspect.signature(original).bind(*args, **kwargs)
    bound.apply_defaults()
    module, x, told = (bound.arguments[key] for key in ("self", "inputs", "deterministic"))
    deterministic = module.deterministic if told is None else told
    if not sources or deterministic is None or deterministic or module.rate in (0.0, 1.0) or 0 in x.shape:
        return original(*args, **kwargs)
    keep = 1.0 - module.rate
    shared = {axis % x.ndim for axis in module.broadcast_dims}
    draw = _bernoulli(keep, tuple(1 if axis in shared else n for axis, n in enumerate(x.shape)))
    found = sources[-1].numbers(draw.law, keep, lambda: _key(module, bound.arguments["rngs"]), draw.shape, silent=True)
    if found is None:
        return original(*args, **kwargs)
    if found is SILENT:
        return x
    return jax.lax.select(jnp.broadcast_to(draw.fill(found), x.shape), x / keep, jnp.zeros_like(x))


def _key(module: nnx.Dropout, rngs: Any) -> Any:
    """Return the key that a dropout would draw with; None if it has to be passed as an argument."""
    rngs = module.rngs if rngs is None else rngs
    if isinstance(rngs, nnx.Rngs):
        return rngs[module.rng_collection]()
    return rngs() if isinstance(rngs, nnx.RngStream) else rngs


# ---- replacement of the functions' code while draws are intercepted ----


def _template(*args: Any, **kwargs: Any) -> Any:
    import parity.random_draws.jax_draws

    return parity.random_draws.jax_draws._called("?", args, kwargs)


def _template_dropout(*args: Any, **kwargs: Any) -> Any:
    import parity.random_draws.jax_draws

    return parity.random_draws.jax_draws._dropout(args, kwargs)


_local = threading.local()
_lock = threading.Lock()
_open = 0
_functions: dict[str, Any] = {name: getattr(jax.random, name) for name in NAMES}
_functions["dropout"] = vars(nnx.Dropout)["__call__"]


def _copy(function: types.FunctionType) -> types.FunctionType:
    """Return a copy of `function` that is unaffected when the code of the original is replaced."""
    copy = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__annotations__ = function.__annotations__
    return copy


_originals = {name: _copy(function) for name, function in _functions.items()}


def _code(name: str) -> types.CodeType:
    if name == "dropout":
        return _template_dropout.__code__
    code = _template.__code__
    return code.replace(co_consts=tuple(name if value == "?" else value for value in code.co_consts))


def _exchange(there: bool) -> None:
    for name, function in _functions.items():
        function.__code__ = _code(name) if there else _originals[name].__code__


@contextlib.contextmanager
def intercepted(source: Source) -> Iterator[None]:
    """Context manager in which the draws of this thread take their values from `source`."""
    global _open
    sources = _local.__dict__.setdefault("sources", [])
    with _lock:
        _open += 1
        if _open == 1:
            _exchange(True)
    sources.append(source)
    try:
        with _context(next(_contexts)):
            yield
    finally:
        sources.pop()
        with _lock:
            _open -= 1
            if _open == 0:
                _exchange(False)


@contextlib.contextmanager
def handed_out(model: nnx.Module, handed: Handed | None) -> Iterator[None]:
    """Context manager in which the draws of `model` get these values; None: the model draws them itself."""
    if handed is None:
        yield
        return
    source = Given(handed)
    with intercepted(source), call_hooks(model, source.entered, source.left):
        yield


def quiet() -> contextlib.AbstractContextManager[None]:
    """Context manager that disables all dropout."""
    return intercepted(Given({}))


def in_precision(handed: Handed, dtype: str) -> dict[Key, list[Any]]:
    """Convert the values of draws to arguments of a program, in `dtype`."""

    def array(numbers: Numbers) -> Any:
        return numbers if isinstance(numbers, Marked | Table) else jnp.asarray(numbers.astype(dtype))

    return {key: [array(numbers) for numbers in given] for key, given in handed.items()}
