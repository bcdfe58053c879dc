"""In the confined process: turn the port's file into programs. It sees the names, shapes and types of arrays only.

JAX traces the port, as for `jax.jit`, and exports forward and backward pass for every trial (`jax.export`). A program
has no Python code in it, so whatever the port's file does, it does it here, where no weight and no input is known.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from parity.precision.casts import FRACTION, Cast
from parity.precision.jax_casts import Scope, casts, format_of, programs
from parity.precision.wide_jax import widened
from parity.verify.arrays import named
from parity.verify.module import as_function

PORT = "port.py"
"""Name of the port's file in the folder of the process."""


class PortError(Exception):
    """What is wrong with a port, in one line; `line` is the line of its file."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


def answer(meta: Mapping[str, Any], given: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the programs of a port, by trial and precision, as arrays of bytes."""
    path = Path(meta["folder"]) / PORT
    try:
        port = load(path, meta["ledger"])
        found: dict[str, np.ndarray] = {}
        described, altered = [], None
        for trial in meta["trials"]:
            names: dict[str, list[Any]] = {}
            for precision in trial["precisions"]:
                exported, names[precision], altered = _export(port, meta, trial, precision)
                found |= {f"{trial['name']}/{precision}/{way}": data for way, data in exported.items()}
            described.append(names)
        return {"outputs": described, "altered": altered}, found
    except BaseException as error:
        message, line = explained(error, path)
        return {"error": message, "line": line}, {}


Port = Callable[..., Any]
"""A function of the weights (a mapping by PyTorch's names) and the inputs."""


def load_file(path: Path) -> Any:
    """Run the port's file; return its module, which has a function `port`.

    Raises:
        PortError: It has none.
    """
    spec = importlib.util.spec_from_file_location("port", path)
    if spec is None or spec.loader is None:
        raise PortError("the port's file is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules["port"] = module
    spec.loader.exec_module(module)
    if not callable(getattr(module, "port", None)):
        raise PortError("the port's file has no function port: write `def port(weights):`")
    return module


def load(path: Path, ledger: Sequence[Any] | None) -> Port:
    """Return the port of a file as a function of the weights and the inputs; `ledger` is that of a module.

    Raises:
        PortError: The file has no port.
    """
    port = load_file(path).port
    if ledger is not None:
        return as_function(port, ledger)

    def run(weights: Mapping[str, jax.Array], *args: Any, **kwargs: Any) -> Any:
        model = port(dict(weights))
        if not callable(model):
            kind = type(model).__name__
            raise PortError(f"port(weights) returned {kind}, not a function of the inputs", _first(port))
        return model(*args, **kwargs)

    return run


def _first(function: Any) -> int | None:
    code = getattr(function, "__code__", None)
    return getattr(code, "co_firstlineno", None)


def bound(port: Port, meta: Mapping[str, Any], trial: Mapping[str, Any]) -> Callable[..., Any]:
    """Return the port as a function of a list of weights and a list of inputs, which returns its tensors by name.

    A name of PyTorch that is the same tensor as another (tied weights) gets that one's value.
    """
    names, aliases = list(meta["weights"]), meta["aliases"]

    def run(weights: Sequence[Any], inputs: Sequence[Any]) -> dict[str, Any]:
        held = dict(zip(names, weights, strict=True))
        held |= {alias: held[name] for alias, name in aliases.items()}
        args, kwargs = arguments(trial, inputs)
        return {name: jnp.asarray(x) for name, x in named(port(held, *args, **kwargs))}

    return run


def arguments(trial: Mapping[str, Any], inputs: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
    """Return the arguments of a call: arrays where the trial has an array, else the constant that it has."""
    supply = iter(inputs)

    def value(item: Any) -> Any:
        return next(supply) if "array" in item else item["value"]

    return [value(item) for item in trial["args"]], {name: value(item) for name, item in trial["kwargs"].items()}


def _export(
    port: Port, meta: Mapping[str, Any], trial: Mapping[str, Any], precision: str
) -> tuple[dict[str, np.ndarray], list[Any], int | None]:
    """Return the exported forward and backward pass, (name, dtype, shape) of every output, and `_noted`."""
    with jax.enable_x64(precision == "float64"), jax.default_matmul_precision("highest"):
        call = bound(port, meta, trial)
        weights = [_shape(x, precision) for x in meta["weights"].values()]
        inputs = [_shape(x, precision) for x in trial["inputs"]]
        closed, shapes = jax.make_jaxpr(call, return_shape=True)(weights, inputs)
        altered = _noted(closed.jaxpr, Path(meta["folder"]) / PORT)
        allows = functools.partial(_allows, [tuple(x) for x in meta["narrow"]], frozenset(_restored(closed.jaxpr)))
        wide = any(allows(cast) for cast in casts(closed, precision))
        outputs = sorted(shapes)

        def forward(weights: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
            found = call(weights, inputs)
            return [found[name] for name in outputs]

        passes: dict[str, tuple[Callable[..., Any], list[Any]]] = {"forward": (forward, [weights, inputs])}
        if meta["gradients"]:
            moving = [name for name in outputs if jnp.issubdtype(shapes[name].dtype, jnp.inexact)]
            cotangents = [jax.ShapeDtypeStruct(shapes[x].shape, _in(shapes[x].dtype, precision)) for x in moving]
            trained = [name in meta["trained"] for name in meta["weights"]]
            passes["backward"] = _backward(call, moving, trained), [weights, inputs, cotangents]
        found = {}
        for way, (function, given) in passes.items():
            told = allows if way == "forward" else functools.partial(allows, backward=True)
            whole = widened(function, precision, told, meta["scalars"]) if wide else function
            found[way] = _exported(whole, given)
        kinds = [[name, str(shapes[name].dtype), list(shapes[name].shape)] for name in outputs]
        return found, kinds, altered


def _backward(call: Callable[..., Any], moving: Sequence[str], trained: Sequence[bool]) -> Callable[..., Any]:
    """Return the pass that takes the gradients of the outputs `moving` to the trained weights and floating inputs."""

    def backward(weights: Sequence[Any], inputs: Sequence[Any], cotangents: Sequence[Any]) -> list[Any]:
        def forward(own: Sequence[Any], given: Sequence[Any]) -> list[Any]:
            supply, rest = iter(own), iter(given)
            held = [next(supply) if part else x for x, part in zip(weights, trained, strict=True)]
            found = call(held, [next(rest) if _moves(x) else x for x in inputs])
            return [found[name].astype(c.dtype) for name, c in zip(moving, cotangents, strict=True)]

        own = [x for x, part in zip(weights, trained, strict=True) if part]
        by_weights, by_inputs = jax.vjp(forward, own, [x for x in inputs if _moves(x)])[1](list(cotangents))
        return [*by_weights, *by_inputs]

    return backward


def _moves(array: Any) -> bool:
    return bool(jnp.issubdtype(array.dtype, jnp.inexact))


def _exported(function: Callable[..., Any], given: Sequence[Sequence[Any]]) -> np.ndarray:
    """Return an exported program that takes all arrays of the lists in one row."""

    def flat(*arrays: Any) -> Any:
        supply = iter(arrays)
        return function(*([next(supply) for _ in part] for part in given))

    found = jax.export.export(jax.jit(flat), platforms=["cpu"])(*(x for part in given for x in part))
    return np.frombuffer(bytes(found.serialize()), np.uint8)


def _shape(described: Sequence[Any], precision: str) -> jax.ShapeDtypeStruct:
    dtype, shape = described
    return jax.ShapeDtypeStruct(tuple(shape), _in(np.dtype(dtype), precision))


def _in(dtype: Any, precision: str) -> Any:
    """Return the type of an array in a run of this precision."""
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return np.dtype("complex128" if precision == "float64" else "complex64")
    return np.dtype(precision) if jnp.issubdtype(dtype, jnp.floating) else jax.dtypes.canonicalize_dtype(dtype)


def _allows(narrow: Sequence[tuple[str, bool]], restored: frozenset[str], cast: Cast, backward: bool = False) -> bool:
    """Return whether a cast is by design: a library's own to float32, or as narrow as one of the reference.

    In the backward pass also the derivative of a cast from float32, at one of the lines `restored`.
    """
    if cast.format == "float32" and (cast.library or (backward and not cast.made and cast.where in restored)):
        return True
    bits = FRACTION.get(cast.format, 0)
    return any(FRACTION[format_] <= bits and (cast.made or not made) for format_, made in narrow)


def _restored(jaxpr: Any, scope: Scope | None = None) -> Iterator[str]:
    """Yield the lines of the forward pass that cast from float32 to float64."""
    scope = scope or Scope()
    for eqn in jaxpr.eqns:
        here = scope.at(eqn)
        formats = [format_of(var) for var in (*eqn.invars, *eqn.outvars)]
        if eqn.primitive.name == "convert_element_type" and formats == ["float32", "float64"]:
            yield here.cast("float32", made=False).where
        for inner in programs(eqn):
            yield from _restored(inner, here)


ALTERED = ("stop_gradient", "custom_vjp_call", "custom_jvp_call", "custom_vjp_call_jaxpr")
"""Operations with a derivative that somebody has written."""


def _noted(jaxpr: Any, path: Path, scope: Scope | None = None) -> int | None:
    """Return the first line of the port's file that alters a derivative.

    Raises:
        PortError: The program calls back into Python.
    """
    scope, altered = scope or Scope(), None
    for eqn in jaxpr.eqns:
        here = scope.at(eqn)
        name = eqn.primitive.name
        if altered is None and name in ALTERED and not here.library:
            altered = next((number for file, number in here.lines if file == str(path)), None)
        if "callback" in name or name == "debug_print":
            lines = [number for file, number in here.lines if file == str(path)]
            raise PortError(f"the port calls back into Python ({name}), which no compiled program does", *lines[:1])
        for inner in programs(eqn):
            altered = _noted(inner, path, here) or altered
    return altered


def explained(error: BaseException, path: Path) -> tuple[str, int | None]:
    """Return an error as one line, and the innermost line of the port's file in its traceback."""
    if isinstance(error, PortError):
        return str(error), error.line
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines.append(error.lineno)
    text = (str(error).strip().splitlines() or [""])[0][:300]
    if isinstance(error, jax.errors.JAXTypeError):
        text += " (JAX traces the port, weights too: use jax.numpy on them, as under jax.jit)"
    return f"{type(error).__name__}: {text}", lines[-1] if lines else None
