"""Find where a traced JAX program narrows values: the module, the line, and whether a library casts on its own."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from parity.precision.casts import FRACTION, Cast, is_library, place, wider

SCOPE = "parity="
"""Prefix of the name scopes made by `module_scope`."""

DECIDING = ("/jax/_src/nn/", "/flax/", "/optax/", "/equinox/", "/haiku/")
"""Libraries whose functions cast on their own; `jax.numpy` and `jax.lax` cast only on request."""

TOLD = frozenset({"promote_dtype", "canonicalize_dtype"})
"""Functions of flax that cast to the dtype configured for a layer."""

WITH_REDUCER = ("scatter", "scatter-add", "scatter-mul", "scatter-min", "scatter-max", "scatter_add", "reduce")
"""First-order operations that contain a small reducer program."""


def module_scope(path: str) -> Any:
    """Name scope that assigns the operations of a traced program to the module `path`."""
    return jax.named_scope(f"{SCOPE}{path}")


@dataclasses.dataclass(frozen=True)
class Scope:
    """Location of an equation: its module and its source."""

    eqn: Any = None
    outer: Scope | None = None

    @functools.cached_property
    def path(self) -> str:
        if self.eqn is None or self.outer is None:
            return ""
        found = re.findall(SCOPE + r"([^/()]*)", str(self.eqn.source_info.name_stack))
        return found[-1] if found else self.outer.path

    @functools.cached_property
    def _frames(self) -> list[Any]:
        traceback = None if self.eqn is None else self.eqn.source_info.traceback
        return [] if traceback is None else list(traceback.frames)

    @functools.cached_property
    def _own(self) -> int | None:
        """Index of the model's own stack frame; None if the program was traced earlier, for another caller."""
        found = next((i for i, frame in enumerate(self._frames) if not is_library(frame.file_name)), None)
        if self.outer is None or self.outer.source is None or found is None:
            return found
        if self.outer.eqn is not None and self.outer.eqn.primitive.name not in ("jit", "pjit"):
            return found  # the body of a loop or branch, which is traced for it
        file, function, _ = self.outer.source
        callers = {(frame.file_name, frame.function_name) for frame in self._frames[found:]}
        return found if self._inside or (file, function) in callers else None

    @functools.cached_property
    def _inside(self) -> bool:
        """Whether the stack frames begin in the function that is compiled by itself, not in its caller's caller."""
        if self.outer is None or not self._frames or not self.outer._frames:
            return False
        first, other = self._frames[-1], self.outer._frames[-1]
        return (first.file_name, first.function_name) != (other.file_name, other.function_name)

    @functools.cached_property
    def source(self) -> tuple[str, str, int] | None:
        """File, function and line of the model's code."""
        if self._own is not None:
            frame = self._frames[self._own]
            return frame.file_name, frame.function_name, frame.line_num
        return self.outer.source if self.outer is not None else None

    @functools.cached_property
    def lines(self) -> tuple[tuple[str, int], ...]:
        """File and line of the model's code, and of the model's code that called it."""
        if self._own is not None:
            frames = self._frames[self._own :]
            own = tuple((frame.file_name, frame.line_num) for frame in frames if not is_library(frame.file_name))
            return (*own, *self.outer.lines) if self._inside and self.outer is not None else own
        return self.outer.lines if self.outer is not None else ()

    @functools.cached_property
    def library(self) -> bool:
        """Whether a library function added this operation on its own."""
        frames = self._frames[: self._own] if self._own is not None else self._until_jit()
        told = any(frame.function_name in TOLD for frame in frames)
        own = any(part in frame.file_name for frame in frames for part in DECIDING)
        inherited = self._own is None and self.outer is not None and self.outer.library
        return (own and not told) or inherited

    def _until_jit(self) -> list[Any]:
        end = next((i for i, frame in enumerate(self._frames) if frame.file_name.endswith("/pjit.py")), 0)
        return self._frames[:end]

    def at(self, eqn: Any) -> Scope:
        return Scope(eqn, self)

    def cast(self, format_: str, *, made: bool) -> Cast:
        where = "" if self.source is None else place(self.source[0], self.source[2])
        return Cast(self.path, format_, where, made, self.library)


def narrowing(eqn: Any, scope: Scope, precision: str) -> Cast | None:
    """Return the cast of an equation (without subprograms) that rounds wider values or creates narrow ones."""
    if eqn.primitive.name == "reduce_precision":
        bits = eqn.params["mantissa_bits"]
        reduced = next((name for name, own in FRACTION.items() if own == bits), "float16")
        return scope.cast(reduced, made=False) if wider(reduced, precision) else None
    format_ = next((format_of(v) for v in eqn.outvars if wider(format_of(v), precision)), None)
    if format_ is None or eqn.primitive.name == "bitcast_convert_type" or programs(eqn):
        return None
    given = [format_of(v) for v in eqn.invars if format_of(v) in FRACTION or jnp.issubdtype(format_of(v), jnp.inexact)]
    bits = min((FRACTION.get(name, 52) for name in given), default=None)
    if bits is not None and bits <= FRACTION[format_]:
        return None
    return scope.cast(format_, made=bits is None)


def casts(closed: ClosedJaxpr, precision: str) -> list[Cast]:
    """Return all narrowing casts of a traced program."""
    return list(dict.fromkeys(all_casts(closed.jaxpr, Scope(), precision)))


def all_casts(jaxpr: Jaxpr, outer: Scope, precision: str) -> Iterator[Cast]:
    for eqn in jaxpr.eqns:
        inner = programs(eqn)
        if inner:
            for program in inner:
                yield from all_casts(program, outer.at(eqn), precision)
        elif eqn.primitive.name == "reduce_precision" or any(wider(format_of(v), precision) for v in eqn.outvars):
            cast = narrowing(eqn, outer.at(eqn), precision)
            if cast is not None and not _constant(eqn):
                yield cast


def _constant(eqn: Any) -> bool:
    return eqn.primitive.name == "convert_element_type" and isinstance(eqn.invars[0], Literal)


def tables_of(closed: ClosedJaxpr, args: Sequence[Any], precision: str) -> list[tuple[str, np.ndarray]]:
    """Return (module, values) of the narrow constants and inputs of a traced program; the module is the first user."""
    found = []
    held = [*zip(closed.jaxpr.constvars, closed.consts, strict=True), *zip(closed.jaxpr.invars, args, strict=True)]
    for var, value in held:
        if np.ndim(value) and wider(format_of(var), precision):
            path = next(_users(closed.jaxpr, var, Scope()), "")
            found.append((path, np.asarray(value).astype(np.float64)))
    return found


def _users(jaxpr: Jaxpr, var: Any, outer: Scope) -> Iterator[str]:
    return (outer.at(eqn).path for eqn in jaxpr.eqns if any(v is var for v in eqn.invars))


def format_of(var: Any) -> str:
    return str(getattr(var.aval, "dtype", ""))


def programs(eqn: Any) -> list[Jaxpr]:
    if eqn.primitive.name in WITH_REDUCER:
        return []
    found: list[Jaxpr] = []
    for value in eqn.params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, ClosedJaxpr | Jaxpr):
                found.append(part.jaxpr if isinstance(part, ClosedJaxpr) else part)
    return found
