"""Any function of a pytree of arrays: `f(params, *inputs)`.

Names are the paths in the pytree. The rules go by the names of the tensors, and the shapes; where a matrix is square,
the name decides, and the ledger says so.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.tree_util import GetAttrKey

from parity.adapters.layouts import TRANSPOSED, join, kernel, matrix, vector
from parity.adapters.weights import KeyPath, Weights, dotted, trained, values
from parity.carry.program import Adapter, Program, Pure, Table, Trained
from parity.carry.rules import LeafRule

IN_OUT = ("w", "W", "kernel", "weights")
"""Names of matrices (in, out) and kernels K.. I O, as in Linen and Haiku; `weight` is in PyTorch's layout."""

RENAMED = {
    "b": ("bias",),
    "bias": ("bias",),
    "offset": ("bias",),
    "beta": ("bias",),
    "scale": ("weight",),
    "gamma": ("weight",),
    "g": ("weight",),
    "embedding": ("weight",),
    "embeddings": ("weight",),
    "table": ("weight",),
    "mean": ("running_mean",),
    "var": ("running_var",),
}
"""Names of tensors in JAX's functions, and in PyTorch's layers."""


def function(
    f: Callable[..., Any], params: Any, *, train: Callable[..., Any] | None = None, stateful: bool = False
) -> FunctionAdapter:
    """Present a function `f(params, *inputs)` to `check`, `torch_to_jax` and all that takes a `flax.nnx.Module`.

    Args:
        f: A pure function that JAX can trace.
        params: A pytree of arrays; leaves that are no arrays are passed as they are.
        train: The function in training mode, `train(params, *inputs)`. If it has an argument `key`, it is given a
            random key by that name. Needed with `level="train"`; may be `f` itself.
        stateful: Whether `train` returns the output and the new `params`, with updated running statistics. It may
            return the changed ones alone, under the same keys.

    Returns:
        An adapter; its `params` hold the weights that `torch_to_jax` gave it.

    Raises:
        ValueError: `f` or `train` is not callable, or `params` hold no array.
    """
    if train is not None and not callable(train):
        raise ValueError(f"train is the function in training mode, not a {type(train).__name__}")
    if stateful and train is None:
        raise ValueError("stateful is about the function in training mode: write parity.function(..., train=...)")
    if not callable(f):
        swapped = ": exchange the two arguments" if callable(params) else ""
        raise ValueError(
            f"parity.function takes f and params, for f(params, *inputs), not a {type(f).__name__}{swapped}"
        )
    weights = Weights.of(params, _name)
    if not weights.arrays:
        raise ValueError(
            f"params hold no array: parity.function(f, params) takes a pytree, not a {type(params).__name__}"
        )
    return FunctionAdapter(f, params, train, stateful)


def _name(path: KeyPath) -> str:
    """Return the name of an array, without the boxes of flax (the `value` of a variable in an `nnx.State`)."""
    inner = path[:-1] if path and path[-1] == GetAttrKey("value") else path
    return dotted(inner) or "params"


class FunctionAdapter(Adapter):
    """A function and its `params`."""

    def __init__(
        self, f: Callable[..., Any], params: Any, train: Callable[..., Any] | None = None, stateful: bool = False
    ) -> None:
        self.f, self.params, self.train, self.stateful = f, params, train, stateful

    def as_nnx(self) -> Program:
        weights = Weights.of(self.params, _name)
        variables = {name: trained(leaf)(leaf) for name, leaf in weights.arrays.items()}
        title = f"function {getattr(self.f, '__name__', type(self.f).__name__)}"
        pure = _Call(self.f, weights.without_arrays(), self.train, self.stateful)
        return Program(variables, pure, table(tuple(variables)), title)

    def update(self, program: Program) -> None:
        self.params = Weights.of(self.params, _name).put(values(program))


class _Call(Pure):
    def __init__(
        self, f: Callable[..., Any], weights: Weights, train: Callable[..., Any] | None, stateful: bool
    ) -> None:
        self._f, self._weights, self._train, self._stateful = f, weights, train, stateful
        if train is None:
            self.no_training = (
                'level="train" needs the function in training mode, as parity.function(f, params, train=f_in_training)'
            )

    def __call__(self, arrays: Mapping[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        with _traceable("f"):
            return self._f(self._weights.put(arrays), *args, **kwargs)

    def train(self, arrays: Mapping[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any], key: Any) -> Trained:
        if self._train is None:
            return super().train(arrays, args, kwargs, key)
        given = {**kwargs, "key": key} if "key" in inspect.signature(self._train).parameters else kwargs
        with _traceable("train"):
            found = self._train(self._weights.put(arrays), *args, **given)
        if not self._stateful:
            return found, {}
        if not isinstance(found, tuple) or len(found) != 2:
            raise ValueError("train has to return a tuple (output, new params), since stateful=True")
        return found[0], self._weights.held_by(found[1])


@contextlib.contextmanager
def _traceable(name: str) -> Iterator[None]:
    """Context manager that raises a ValueError if a function cannot be traced by JAX."""
    try:
        yield
    except jax.errors.JAXTypeError as error:
        line = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(
            f"{name} cannot be traced by JAX: use jax.numpy and jax.lax on its arguments, as under jax.jit ({line})"
        ) from error


def table(names: Sequence[str]) -> Table:
    """Return the rules for these names."""
    return Table([rule for name in names for rule in _leaf(name)])


def _leaf(name: str) -> Iterator[LeafRule]:
    path, _, leaf = name.rpartition(".")
    weight = join(path, "weight")
    if leaf in IN_OUT:
        yield from matrix(weight, name)
        yield LeafRule(weight, name, (0, 1))
        yield from kernel(weight, name, out_in=False)
        yield LeafRule(weight, name)
    elif leaf == "weight":
        yield LeafRule(weight, name, (0, 1))
        yield LeafRule(weight, name)
        yield LeafRule(weight, name, layer=TRANSPOSED)
        yield from matrix(weight, name)
        yield from kernel(weight, name, out_in=False)
    for torch in RENAMED.get(leaf, ()):
        yield from vector(join(path, torch), name)
    yield LeafRule(name, name)
