"""Mutation: one common mistake in ports, deliberately inserted into a correct pair."""

from __future__ import annotations

import contextlib
import dataclasses
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

GROUPS = ("forward", "gradient", "optimiser", "schedule", "conversion", "data", "train")

Apply = Callable[[nnx.Module], "AbstractContextManager[Any] | None"]
"""Function that inserts the mistake into a JAX model in place, or returns a context in which it is active."""


@dataclasses.dataclass(frozen=True)
class Mutation:
    """One mistake in the JAX model of a pair.

    Attributes:
        name: Unique short description.
        group: One of GROUPS; determines which checks are run.
        pair: Name of the pair (see `pairs`) that is mutated.
        module: Module that must be named ("the model" for the outermost); None if no module is at fault.
        cause: Switch that must be named; None if the catalogue has none.
        apply: Function that inserts the mistake.
        also: Other switches that describe the same mistake, and so do not count as false causes.
    """

    name: str
    group: str
    pair: str
    module: str | None
    cause: str | None
    apply: Apply
    also: tuple[str, ...] = ()

    @property
    def true_causes(self) -> tuple[str, ...]:
        """Switches that may be named for this mistake."""
        return self.also if self.cause is None else (self.cause, *self.also)


def mistakes_in(pair: str) -> Callable[..., Mutation]:
    """Return a factory of mutations of one pair, whose names start with it and whose default group is "forward"."""

    def mistake(
        name: str,
        module: str | None,
        cause: str | None,
        apply: Apply,
        group: str = "forward",
        also: tuple[str, ...] = (),
    ) -> Mutation:
        return Mutation(f"{pair}: {name}", group, pair, module, cause, apply, also)

    return mistake


def at(model: Any, path: str) -> Any:
    """Return the submodule at a dotted path."""
    for part in path.split("."):
        model = model[int(part)] if part.isdigit() else getattr(model, part)
    return model


def along_channels(values: jax.Array, x: jax.Array) -> jax.Array:
    """Reshape (C,) to (1, ..., 1, C), with the rank of `x`."""
    return jnp.expand_dims(values, range(x.ndim - 1))


def setting(path: str, /, **attributes: Any) -> Apply:
    """Set attributes of a submodule."""

    def apply(model: nnx.Module) -> None:
        for name, value in attributes.items():
            setattr(at(model, path), name, value)

    return apply


def changing(path: str, change: Callable[[jax.Array], jax.Array]) -> Apply:
    """Change one tensor of the JAX model."""

    def apply(model: nnx.Module) -> None:
        variable = at(model, path)
        variable.set_value(change(variable[...]))

    return apply


def exchanged(first: str, second: str) -> Apply:
    """Exchange two tensors of the JAX model."""

    def apply(model: nnx.Module) -> None:
        a, b = at(model, first), at(model, second)
        x, y = a[...], b[...]
        a.set_value(y)
        b.set_value(x)

    return apply


def calling(path: str, call: Callable[..., Any], method: str = "__call__") -> Apply:
    """Replace a method of one submodule by call(self, original, *args), where original(*args) is the old method."""

    def apply(model: nnx.Module) -> None:
        module = at(model, path) if path else model
        original = getattr(type(module), method)

        def replaced(self: Any, *args: Any, **kwargs: Any) -> Any:
            return call(self, lambda *a, **k: original(self, *a, **k), *args, **kwargs)

        body = {method: replaced}
        module.__class__ = types.new_class(type(module).__name__, (type(module),), {}, lambda space: space.update(body))

    return apply


def patching(owner: Any, **replacements: Callable[..., Any]) -> Apply:
    """Replace functions of a namespace by replacement(original, *args) while the mistake is active."""
    return lambda model: _patched(owner, replacements)


@contextlib.contextmanager
def _patched(owner: Any, replacements: dict[str, Callable[..., Any]]) -> Iterator[None]:
    originals = {name: getattr(owner, name) for name in replacements}

    def bound(name: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: replacements[name](originals[name], *args, **kwargs)

    try:
        for name in replacements:
            setattr(owner, name, bound(name))
        yield
    finally:
        for name, original in originals.items():
            setattr(owner, name, original)


def within(module: types.ModuleType, alias: str, **replacements: Callable[..., Any]) -> Apply:
    """As `patching`, for functions that `module` calls as `alias.name`; other modules are not affected."""

    def apply(model: nnx.Module) -> AbstractContextManager[None]:
        return _aliased(module, alias, replacements)

    return apply


@contextlib.contextmanager
def _aliased(module: types.ModuleType, alias: str, replacements: dict[str, Callable[..., Any]]) -> Iterator[None]:
    original = getattr(module, alias)
    view = types.SimpleNamespace(
        **{name: getattr(original, name) for name in dir(original) if not name.startswith("__")}
    )
    setattr(module, alias, view)
    try:
        with _patched(view, replacements):
            yield
    finally:
        setattr(module, alias, original)
