"""A mutation: one mistake that porters make, put into a correct pair on purpose."""

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
"""Puts the mistake into a JAX model in place; or returns a context in which the mistake is in force."""


@dataclasses.dataclass(frozen=True)
class Mutation:
    """One mistake in the JAX half of a pair.

    Attributes:
        name: what is wrong, in a few words; unique.
        group: one of GROUPS; it decides what is run.
        pair: which pair of `pairs` it is put into.
        module: the module that has to be named ("the model" for the outermost); None where none is to blame.
        cause: the switch that has to be named; None where the catalogue has none.
        apply: puts it in.
        also: other switches that say the same of this mistake, so that they are no false causes.
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
        """What may be named without being false."""
        return self.also if self.cause is None else (self.cause, *self.also)


def mistakes_in(pair: str) -> Callable[..., Mutation]:
    """A maker of mistakes in one pair: their names begin with it, and they are of the group "forward" unless said."""

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
    """The submodule at a dotted path."""
    for part in path.split("."):
        model = model[int(part)] if part.isdigit() else getattr(model, part)
    return model


def along_channels(values: jax.Array, x: jax.Array) -> jax.Array:
    """(C,) -> (1, ..., 1, C), of the rank of `x`."""
    return jnp.expand_dims(values, range(x.ndim - 1))


def setting(path: str, /, **attributes: Any) -> Apply:
    """Sets attributes of a submodule."""

    def apply(model: nnx.Module) -> None:
        for name, value in attributes.items():
            setattr(at(model, path), name, value)

    return apply


def changing(path: str, change: Callable[[jax.Array], jax.Array]) -> Apply:
    """Changes one tensor of the JAX model."""

    def apply(model: nnx.Module) -> None:
        variable = at(model, path)
        variable.set_value(change(variable[...]))

    return apply


def exchanged(first: str, second: str) -> Apply:
    """Exchanges two tensors of the JAX model."""

    def apply(model: nnx.Module) -> None:
        a, b = at(model, first), at(model, second)
        x, y = a[...], b[...]
        a.set_value(y)
        b.set_value(x)

    return apply


def calling(path: str, call: Callable[..., Any], method: str = "__call__") -> Apply:
    """Another method for one submodule: call(self, original, *args), with original(*args) for what it replaces."""

    def apply(model: nnx.Module) -> None:
        module = at(model, path) if path else model
        original = getattr(type(module), method)

        def replaced(self: Any, *args: Any, **kwargs: Any) -> Any:
            return call(self, lambda *a, **k: original(self, *a, **k), *args, **kwargs)

        body = {method: replaced}
        module.__class__ = types.new_class(type(module).__name__, (type(module),), {}, lambda space: space.update(body))

    return apply


def patching(owner: Any, **replacements: Callable[..., Any]) -> Apply:
    """Other functions in a namespace while the mistake is in force: replacement(original, *args)."""
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
    """As `patching`, for functions that a source file calls as `alias.name`, and only for that file."""

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
