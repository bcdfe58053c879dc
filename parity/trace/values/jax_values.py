"""Run a JAX program equation by equation, and look at or replace every value on the way.

Calls (`jit`, `remat`, custom derivatives) are entered, loops run step by step, and of a branch the one that is taken
runs. The number of an equation is its position in this run, so that the same equation of a layer that is called twice,
or of two steps of a loop, has two numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from parity.precision.jax_casts import Scope
from parity.trace.values.numpy_operations import evaluate

ENTERED = frozenset(
    {
        *("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2"),
        *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "custom_lin"),
    }
)
"""Operations that only call their program."""

SAME_VALUES = frozenset(
    {"reshape", "transpose", "squeeze", "expand_dims", "copy", "copy_p", "stop_gradient", "sharding_constraint", "rev"}
)
"""Operations whose result holds the values of their operand."""


@dataclasses.dataclass(frozen=True)
class Held:
    """A value of the program, and the numbers of the equations that computed it: none for an input."""

    array: Any
    by: frozenset[int] = frozenset()


@dataclasses.dataclass(frozen=True)
class Step:
    """One result of an equation.

    Attributes:
        number: Position of the result in the run.
        eqn: The equation.
        scope: Where it is in the source code.
        array: The result.
        inputs: Numbers of the results that it uses.
    """

    number: int
    eqn: Any
    scope: Scope
    array: Any
    inputs: frozenset[int]


Seen = Callable[[Step], "Any | None"]
"""Function that sees every result; what it returns (None: nothing) replaces the result."""


def run(closed: ClosedJaxpr, arguments: Sequence[Any], seen: Seen) -> list[Any]:
    """Run a program with concrete arrays and return its results."""
    return [held.array for held in run_held(closed, arguments, seen)]


def run_held(closed: ClosedJaxpr, arguments: Sequence[Any], seen: Seen) -> list[Held]:
    """Run a program with concrete arrays and return its results with their numbers."""
    return _Run(seen).program(closed, [Held(x) for x in arguments], Scope())


class _Run:
    """State of one run: the number of the next equation."""

    def __init__(self, seen: Seen) -> None:
        self.seen, self.count = seen, 0

    def program(self, program: ClosedJaxpr | Jaxpr, given: Sequence[Held], scope: Scope) -> list[Held]:
        jaxpr: Any = getattr(program, "jaxpr", program)
        consts: Any = getattr(program, "consts", ())
        env: dict[Any, Held] = dict(zip(jaxpr.invars, given, strict=True))
        env.update(zip(jaxpr.constvars, map(Held, consts), strict=True))
        last = _last_uses(jaxpr)

        def read(atom: Any) -> Held:
            return Held(atom.val) if isinstance(atom, Literal) else env[atom]

        for i, eqn in enumerate(jaxpr.eqns):
            with eqn.ctx.manager:
                found = self.equation(eqn, [read(atom) for atom in eqn.invars], scope.at(eqn))
            env.update(zip(eqn.outvars, found, strict=True))
            for var in last.get(i, ()):
                env.pop(var, None)
        return [read(atom) for atom in jaxpr.outvars]

    def equation(self, eqn: Any, given: list[Held], scope: Scope) -> list[Held]:
        name = eqn.primitive.name
        if name in ENTERED:
            program = next(eqn.params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in eqn.params)
            return self.program(program, given, scope)
        if name == "scan" and eqn.params["length"]:
            return self._scan(eqn.params, given, scope)
        if name == "while":
            return self._while(eqn.params, given, scope)
        if name == "cond":
            return self.program(eqn.params["branches"][int(given[0].array)], given[1:], scope)
        operands = tuple(x.array for x in given)
        inputs = frozenset().union(*(x.by for x in given))
        return [self._result(eqn, scope, x, inputs) for x in _results(eqn, operands)]

    def _result(self, eqn: Any, scope: Scope, array: Any, inputs: frozenset[int]) -> Held:
        number, self.count = self.count, self.count + 1
        new = self.seen(Step(number, eqn, scope, array, inputs))
        array = array if new is None else np.asarray(new, array.dtype)
        return Held(array, frozenset((number,)))

    def _scan(self, params: Any, given: list[Held], scope: Scope) -> list[Held]:
        body, first, carried = params["jaxpr"], params["num_consts"], params["num_carry"]
        consts, carry, xs = given[:first], given[first : first + carried], given[first + carried :]
        steps = range(params["length"])
        collected: list[list[Held]] = []
        for i in reversed(steps) if params["reverse"] else steps:
            found = self.program(body, [*consts, *carry, *(Held(x.array[i], x.by) for x in xs)], scope)
            carry = found[:carried]
            collected.append(found[carried:])
        if params["reverse"]:
            collected.reverse()
        return [*carry, *(self._stacked(ys) for ys in zip(*collected, strict=True))]

    def _stacked(self, steps: Sequence[Held]) -> Held:
        return Held(jnp.stack([x.array for x in steps]), frozenset().union(*(x.by for x in steps)))

    def _while(self, params: Any, carry: list[Held], scope: Scope) -> list[Held]:
        first, second = params["cond_nconsts"], params["body_nconsts"]
        asked, consts, carry = carry[:first], carry[first : first + second], carry[first + second :]
        while bool(self.program(params["cond_jaxpr"], [*asked, *carry], scope)[0].array):
            carry = self.program(params["body_jaxpr"], [*consts, *carry], scope)
        return carry


def _results(eqn: Any, operands: Sequence[Any]) -> Sequence[Any]:
    found = evaluate(eqn, operands)
    if found is not None:
        return found
    bound = eqn.primitive.get_bind_params(eqn.params)
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    results = eqn.primitive.bind(*functions, *operands, **params)
    return results if eqn.primitive.multiple_results else [results]


def _last_uses(jaxpr: Jaxpr) -> dict[int, list[Any]]:
    """Return for every equation the variables that are not used after it, so that their memory can be released."""
    last: dict[Any, int] = {}
    for i, eqn in enumerate(jaxpr.eqns):
        last.update((v, i) for v in (*eqn.invars, *eqn.outvars) if not isinstance(v, Literal))
    kept = {v for v in jaxpr.outvars if not isinstance(v, Literal)}
    found: dict[int, list[Any]] = {}
    for var, i in last.items():
        if var not in kept:
            found.setdefault(i, []).append(var)
    return found
