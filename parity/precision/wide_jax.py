"""Run a JAX function in higher precision: it is traced, and its program is evaluated without narrowing casts.

In a float64 run `x.astype(jnp.float32)` rounds, and later results are float32 until something casts to float64
again. Here the traced program (a jaxpr) is evaluated equation by equation: a cast that is by design returns the
float64 value itself, and results computed from it stay float64, through `jit`, `scan`, `while`, `cond`, `remat` and
custom derivatives. A cast that is not by design rounds as written. Gradients need no special treatment: the evaluated
program is the one that computes them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from parity.precision.casts import Cast, wider
from parity.precision.jax_casts import Scope, all_casts, format_of, narrowing, programs

INLINED = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "checkpoint", "remat2")
"""Calls whose program is evaluated in place; derivatives have been taken before."""


@dataclasses.dataclass(frozen=True)
class Either:
    """A constant of the program, in its narrow format and in full precision, for narrow and wide operands."""

    narrow: Any
    whole: Any


@dataclasses.dataclass(frozen=True)
class Table:
    """A narrow array made before the run; widened if this is allowed for the module that uses it."""

    value: Any


def widened(
    function: Callable[..., Any], precision: str, allows: Callable[[Cast], bool], scalars: Collection[float] = ()
) -> Callable[..., Any]:
    """Return `function` with the allowed casts removed.

    Args:
        precision: Precision of the run; lower formats are narrow.
        allows: Function that returns whether a cast is by design.
        scalars: Python numbers that the models use: a program stores them rounded, and they are restored.
    """

    def run(*args: Any) -> Any:
        numbers: set[float] = set(scalars)
        with noting(numbers):  # a new function each time: JAX would reuse a cached trace
            closed, shape = jax.make_jaxpr(lambda *args: function(*args), return_shape=True)(*args)
        found = Evaluator(precision, allows, numbers).closed(closed, jax.tree.leaves(args), Scope())
        return jax.tree.unflatten(jax.tree.structure(shape), found)

    return run


class Evaluator:
    """Evaluate programs; a value is wide if its precision is higher than that of its variable."""

    def __init__(self, precision: str, allows: Callable[[Cast], bool], scalars: Collection[float] = ()) -> None:
        self.precision, self.allows = precision, allows
        self._scalars = sorted(x for x in scalars if abs(x) < np.finfo(np.float32).max)
        self._known: dict[str, dict[float, float]] = {}

    def closed(self, closed: ClosedJaxpr, args: Sequence[Any], scope: Scope) -> list[Any]:
        """Return the results of a whole program."""
        given = [self._held(var, x) for var, x in zip(closed.jaxpr.invars, args, strict=True)]
        found = zip(self.run(closed.jaxpr, closed.consts, given, scope), closed.jaxpr.outvars, strict=True)
        return [self._settled(x, var, wide=isinstance(x, Table) or self._is_wide(x, var)) for x, var in found]

    def run(self, jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any], scope: Scope) -> list[Any]:
        env: dict[Any, Any] = dict(zip(jaxpr.invars, args, strict=True))
        env.update((var, self._held(var, x)) for var, x in zip(jaxpr.constvars, consts, strict=True))

        def read(atom: Any) -> Any:
            return self._literal(atom) if isinstance(atom, Literal) else env[atom]

        for eqn in jaxpr.eqns:
            with eqn.ctx.manager, source_of(eqn):
                found = self._equation(eqn, [read(atom) for atom in eqn.invars], scope.at(eqn))
            env.update(zip(eqn.outvars, found, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _held(self, var: Any, value: Any) -> Any:
        if not wider(format_of(var), self.precision):
            return value
        known = isinstance(value, np.ndarray | np.generic) or (hasattr(value, "__array__") and not _traced(value))
        return Either(value, self._recovered(value)) if known and not np.ndim(value) else Table(value)

    def _literal(self, literal: Any) -> Any:
        value = literal.val
        if np.ndim(value) or not jax.numpy.issubdtype(np.asarray(value).dtype, np.floating):
            return value
        narrow = wider(format_of(literal), self.precision)
        return Either(value, self._recovered(value) if narrow else value)

    def _recovered(self, value: Any) -> np.ndarray:
        """Restore a narrow scalar to its value in the source code: 0.1 is stored as 0.100000001."""
        format_ = str(value.dtype)
        if format_ not in self._known:
            with np.errstate(over="ignore"):
                rounded = ((float(np.asarray(x).astype(value.dtype)), x) for x in self._scalars)
                self._known[format_] = {short: x for short, x in rounded if short != x}
        whole = whole_scalar(np.asarray(value)[()], self._known[format_])
        return np.asarray(whole, wider(format_, self.precision))

    def _equation(self, eqn: Any, values: list[Any], scope: Scope) -> list[Any]:
        name = eqn.primitive.name
        if name in INLINED:
            program = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
            closed = isinstance(program, ClosedJaxpr)
            return self.run(program.jaxpr if closed else program, program.consts if closed else (), values, scope)
        values = [self._looked_up(x, scope) for x in values]
        if name in CONTROL:
            return self._control(eqn, values, scope)
        if programs(eqn) or name == "bitcast_convert_type":
            return self._bind(eqn, values, wide=False)
        if all(isinstance(x, Either) for x in values) and values:
            pair = self._bind(eqn, values, wide=False), self._bind(eqn, values, wide=True)
            return [Either(a, b) for a, b in zip(*pair, strict=True)]
        cast = narrowing(eqn, scope, self.precision)
        if cast is not None:
            return self._bind(eqn, values, wide=self.allows(cast))
        wide = any(self._is_wide(x, var) for x, var in zip(values, eqn.invars, strict=True))
        return self._bind(eqn, self._chosen(values, wide, scope), wide=wide)

    def _looked_up(self, value: Any, scope: Scope) -> Any:
        """Return a table in the precision allowed for the module that uses it."""
        if not isinstance(value, Table):
            return value
        format_ = str(value.value.dtype)
        if not self.allows(scope.cast(format_, made=True)):
            return value.value
        return jax.lax.convert_element_type(value.value, wider(format_, self.precision) or format_)

    def _chosen(self, values: list[Any], wide: bool, scope: Scope) -> list[Any]:
        """Select the format of constants in an operation without wide operands: wide if float32 is by design."""
        if wide or all(x.narrow is x.whole for x in values if isinstance(x, Either)):
            return values
        allowed = self.allows(scope.cast("float32", made=True))
        return [(x.whole if allowed else x.narrow) if isinstance(x, Either) else x for x in values]

    def _is_wide(self, value: Any, var: Any) -> bool:
        return (
            not isinstance(value, Either)
            and bool(wider(format_of(var), self.precision))
            and (str(value.dtype) != format_of(var))
        )

    def _settled(self, value: Any, var: Any, *, wide: bool) -> Any:
        """Return a value as an operand: wide, or in the dtype of its variable."""
        if isinstance(value, Table):
            value = value.value
        if isinstance(value, Either):
            value = value.whole if wide else value.narrow
        format_ = wider(format_of(var), self.precision)
        if not format_:
            return value
        target = format_ if wide else format_of(var)
        return value if str(value.dtype) == target else jax.lax.convert_element_type(value, target)

    def _bind(self, eqn: Any, values: Sequence[Any], *, wide: bool) -> list[Any]:
        if eqn.primitive.name == "reduce_precision" and wide:
            return [self._settled(values[0], eqn.invars[0], wide=True)]
        rounds = eqn.primitive.name == "convert_element_type" and not wide
        given = [
            x if rounds and not isinstance(x, Either) else self._settled(x, var, wide=wide)
            for x, var in zip(values, eqn.invars, strict=True)
        ]
        params = {key: self._param(x) for key, x in eqn.params.items()} if wide else eqn.params
        bound = eqn.primitive.get_bind_params(params)
        functions, params = bound if isinstance(bound, tuple) else ((), bound)
        found = eqn.primitive.bind(*functions, *given, **params)
        return list(found) if eqn.primitive.multiple_results else [found]

    def _param(self, value: Any) -> Any:
        """Widen a parameter of an operation: a dtype, or the program of a reduction."""
        if isinstance(value, np.dtype):
            return np.dtype(wider(str(value), self.precision) or value)
        if isinstance(value, ClosedJaxpr | Jaxpr):
            return self._program(value)
        return value

    def _program(self, program: Any) -> Any:
        closed = isinstance(program, ClosedJaxpr)
        jaxpr, consts = (program.jaxpr, program.consts) if closed else (program, ())

        def run(*args: Any) -> list[Any]:
            return self._wide_results(jaxpr, consts, args, Scope())

        shapes = [
            jax.ShapeDtypeStruct(v.aval.shape, wider(format_of(v), self.precision) or v.aval.dtype)
            for v in jaxpr.invars
        ]
        found = jax.make_jaxpr(run)(*shapes)
        return found if closed else found.jaxpr

    def _wide_results(self, jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any], scope: Scope) -> list[Any]:
        found = self.run(jaxpr, consts, args, scope)
        return [self._settled(x, var, wide=True) for x, var in zip(found, jaxpr.outvars, strict=True)]

    def _control(self, eqn: Any, values: list[Any], scope: Scope) -> list[Any]:
        """Evaluate a loop or branch: entirely wide if any input is wide or any cast in it is allowed."""
        wide = any(self._is_wide(x, var) for x, var in zip(values, eqn.invars, strict=True)) or any(
            self.allows(cast) for program in programs(eqn) for cast in all_casts(program, scope, self.precision)
        )
        if not wide:
            return self._bind(eqn, values, wide=False)
        given = [self._settled(x, var, wide=True) for x, var in zip(values, eqn.invars, strict=True)]
        return list(CONTROL[eqn.primitive.name](self, eqn.params, given, scope))

    def _scan(self, params: Any, given: list[Any], scope: Scope) -> list[Any]:
        body, first, carried = params["jaxpr"], params["num_consts"], params["num_carry"]
        consts, init, xs = given[:first], given[first : first + carried], given[first + carried :]

        def step(carry: Any, x: Any) -> Any:
            found = self._wide_results(body.jaxpr, body.consts, [*consts, *carry, *x], scope)
            return found[:carried], found[carried:]

        options = {key: params[key] for key in ("length", "reverse", "unroll")}
        carry, ys = jax.lax.scan(step, init, xs, **options)
        return [*carry, *ys]

    def _while(self, params: Any, given: list[Any], scope: Scope) -> list[Any]:
        ask, body = params["cond_jaxpr"], params["body_jaxpr"]
        first, second = params["cond_nconsts"], params["body_nconsts"]
        asked, consts, init = given[:first], given[first : first + second], given[first + second :]

        def goes_on(carry: Any) -> Any:
            return self.run(ask.jaxpr, ask.consts, [*asked, *carry], scope)[0]

        def step(carry: Any) -> Any:
            return self._wide_results(body.jaxpr, body.consts, [*consts, *carry], scope)

        return jax.lax.while_loop(goes_on, step, init)

    def _cond(self, params: Any, given: list[Any], scope: Scope) -> list[Any]:
        def branch(closed: ClosedJaxpr) -> Callable[..., Any]:
            return lambda *args: self._wide_results(closed.jaxpr, closed.consts, args, scope)

        return jax.lax.switch(given[0], [branch(closed) for closed in params["branches"]], *given[1:])


CONTROL: dict[str, Callable[..., list[Any]]] = {
    "scan": Evaluator._scan,
    "while": Evaluator._while,
    "cond": Evaluator._cond,
}


def source_of(eqn: Any) -> contextlib.AbstractContextManager[Any]:
    """Context manager that gives new equations the source line of `eqn`, in versions of JAX that have one for it."""
    with contextlib.suppress(ImportError, AttributeError):
        util: Any = importlib.import_module("jax._src.source_info_util")
        return util.user_context(eqn.source_info.traceback)  # type: ignore[no-any-return]
    return contextlib.nullcontext()


def _traced(value: Any) -> bool:
    return isinstance(value, jax.core.Tracer)


def whole_scalar(value: Any, known: dict[float, float]) -> float:
    """Return the number that the source code meant by a narrow scalar: a known one, else a short one.

    Candidates are the recorded Python numbers, the shortest decimal of at most six digits, and roots, halves and
    multiples of pi; all of them round to `value`, so the choice changes it by less than one rounding.
    """
    own = float(value)
    if not math.isfinite(own) or own == 0:
        return own
    if own in known:
        return known[own]
    decimals = (float(f"{own:.{digits}g}") for digits in range(1, 7))
    short = next((x for x in decimals if type(value)(x) == value), None)
    if short is not None:
        return short
    return next((x for x in _constants(own) if type(value)(x) == value), own)


def _constants(own: float) -> Iterator[float]:
    """Yield common constants near `own`: +-sqrt(m / n), m / n, and multiples of pi and its roots."""
    sign, size = math.copysign(1.0, own), abs(own)
    for unit in (1.0, math.pi, 1 / math.pi, math.e, math.log(2), 1 / math.log(2), math.log(10)):
        for divisor in range(1, 65):
            root, whole = size * size / unit * divisor, size / unit * divisor
            if round(root) > 0:
                yield sign * math.sqrt(round(root) * unit / divisor)
            if round(whole) > 0:
                yield sign * round(whole) * unit / divisor
        yield sign * math.sqrt(unit / max(round(unit / size**2), 1))
        yield sign * unit / max(round(unit / size), 1)


@contextlib.contextmanager
def noting(numbers: set[float]) -> Iterator[None]:
    """Record the Python numbers that a traced function passes to JAX, whose programs store them rounded.

    They are rounded in two internal functions of JAX; in versions without these, `whole_scalar` has to guess.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, AttributeError, KeyError):
            lax: Any = importlib.import_module("jax._src.lax.lax")
            convert = lax._convert_element_type

            def converting(operand: Any, *args: Any, **kwargs: Any) -> Any:
                numbers.update([float(operand)] if isinstance(operand, float) else [])
                return convert(operand, *args, **kwargs)

            stack.callback(setattr, lax, "_convert_element_type", convert)
            lax._convert_element_type = converting
            rules = importlib.import_module("jax._src.interpreters.partial_eval").const_fold_rules
            fold = rules[lax.convert_element_type_p]

            def folding(consts: Any, *args: Any) -> Any:
                numbers.update(float(x) for x in consts if isinstance(x, float))
                return fold(consts, *args)

            stack.callback(rules.__setitem__, lax.convert_element_type_p, fold)
            rules[lax.convert_element_type_p] = folding
        yield
