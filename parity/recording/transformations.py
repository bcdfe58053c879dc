"""Recording of module calls inside JAX transformations: `jax.jit`, `nnx.jit`, remat, `vmap` and `scan` in a model.

A hook that stores an array of such a call would leak a tracer. So the model is traced to a jaxpr in which every call
marks its arrays (with an identity primitive, `mark_p`), and that jaxpr is evaluated with the transformations inlined:
there the marks see concrete arrays and may replace them. A mark inside `vmap` sees the whole batch; a `scan` with
marks is unrolled. Calls inside `while`, `cond` and functions with custom derivatives (`custom_jvp`, `custom_vjp`) are
not recorded.

Inside `nnx.jit` and similar transformations a module is a different object, so modules store their path as an
attribute.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from parity.precision.jax_casts import module_scope
from parity.recording.capture import (
    Call,
    Calls,
    Key,
    Recorder,
    Replace,
    Returned,
    callable_classes,
    innermost,
    jax_hooks,
    module_types,
    replaced_calls,
)
from parity.recording.inputs import Apply, positional
from parity.recording.structure import flatten, is_tensor, tensors, with_tensors

PATH = "_parity_path"
"""Name of the attribute that stores a module's path."""

mark_p = core.Primitive("parity_mark")
mark_p.multiple_results = True
mark_p.def_impl(lambda *arrays, path, where: list(arrays))
mark_p.def_abstract_eval(lambda *avals, path, where: list(avals))
mlir.register_lowering(mark_p, mlir.lower_fun(lambda *arrays, path, where: list(arrays), multiple_results=True))


def _mark_jvp(primals: Sequence[Any], tangents: Sequence[Any], **params: Any) -> tuple[list[Any], list[Any]]:
    return mark_p.bind(*primals, **params), list(tangents)


def _mark_batch(arrays: Sequence[Any], axes: Sequence[Any], **params: Any) -> tuple[list[Any], list[Any]]:
    """Move the batch axis first, as in PyTorch."""
    moved = [x if axis is None else jnp.moveaxis(x, axis, 0) for x, axis in zip(arrays, axes, strict=True)]
    return mark_p.bind(*moved, **params), [None if axis is None else 0 for axis in axes]


ad.primitive_jvps[mark_p] = _mark_jvp
batching.primitive_batchers[mark_p] = _mark_batch

_OPENED = frozenset({"jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"})
"""Primitives that only call their jaxpr."""


def with_paths(model: nnx.Module) -> nnx.Module:
    """Return a copy of the model in which every module stores its path."""
    copy: nnx.Module = nnx.clone(model)
    for path, module in nnx.iter_modules(copy):
        setattr(module, PATH, ".".join(map(str, path)))
    return copy


def has_paths(model: nnx.Module) -> bool:
    return hasattr(model, PATH)


def watched(
    model: nnx.Module, before: Replace, after: Replace, returned: Returned | None = None, inside: Any = None
) -> Callable[..., Any]:
    """Return a function that calls `model` and passes all calls' arrays to `before` and `after`; see `jax_hooks`.

    Raises:
        NestedCallError: A module is called inside a transformation, and the modules do not store their paths.
    """

    def direct(*args: Any, **kwargs: Any) -> Any:
        with jax_hooks(model, before, after, inside, returned):
            return model(*args, **kwargs)

    def through_jaxpr(*args: Any, **kwargs: Any) -> Any:
        return _evaluated(model, args, kwargs, before, after, returned)

    return through_jaxpr if has_paths(model) and inside is None else direct


@contextlib.contextmanager
def call_hooks(model: nnx.Module, entered: Replace, left: Replace) -> Iterator[None]:
    """Context manager that reports every module call, also inside transformations if the modules store their paths.

    The return values of `entered` and `left`, and the arrays passed to them, are not used.
    """
    if not has_paths(model):
        with jax_hooks(model, entered, left, skip_nested=True):
            yield
        return
    active: set[str] = set()
    count: dict[str, int] = {}

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: nnx.Module, *args: Any, **kwargs: Any) -> Any:
            path = getattr(self, PATH, None)
            if path is None or path in active:
                return original(self, *args, **kwargs)
            key: Key = (path, count.get(path, 0))
            count[path] = key[1] + 1
            active.add(path)
            entered(key, [])
            try:
                return original(self, *args, **kwargs)
            finally:
                active.discard(path)
                left(key, [])

        return call

    with replaced_calls(callable_classes(module_types(model)), wrap):
        yield


def _evaluated(
    model: nnx.Module, args: Any, kwargs: Any, before: Replace, after: Replace, returned: Returned | None
) -> Any:
    graphdef, state = nnx.split(model)
    leaves, rebuild = flatten((args, kwargs))
    places = [i for i, leaf in enumerate(leaves) if is_tensor(leaf)]
    made: dict[str, Any] = {}

    def program(state: nnx.State, arrays: Sequence[jax.Array]) -> tuple[list[jax.Array], nnx.State]:
        new: Any = nnx.merge(graphdef, state)
        given = dict(zip(places, arrays, strict=True))
        own_args, own_kwargs = rebuild([given.get(i, leaf) for i, leaf in enumerate(leaves)])
        with _marking(new, returned):
            found, made["rebuild"] = flatten(new(*own_args, **own_kwargs))
        made["leaves"] = [None if is_tensor(x) else x for x in found]
        made["places"] = [i for i, x in enumerate(found) if is_tensor(x)]
        return [found[i] for i in made["places"]], nnx.state(new)

    arrays = [leaves[i] for i in places]
    closed, shapes = jax.make_jaxpr(program, return_shape=True)(state, arrays)
    evaluation = _Evaluation(before, after)
    flat = evaluation.run(closed.jaxpr, closed.consts, jax.tree.leaves((state, arrays)))
    outputs, new_state = jax.tree.unflatten(jax.tree.structure(shapes), flat)
    nnx.update(model, new_state)
    whole = made["leaves"]
    for i, x in zip(made["places"], outputs, strict=True):
        whole[i] = x
    return made["rebuild"](whole)


@contextlib.contextmanager
def _marking(model: nnx.Module, returned: Returned | None) -> Iterator[None]:
    """Context manager in which every module call marks its arrays."""
    active: set[str] = set()
    count: dict[str, int] = {}

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: nnx.Module, *args: Any, **kwargs: Any) -> Any:
            path = getattr(self, PATH, None)
            if path is None or path in active:
                return original(self, *args, **kwargs)
            active.add(path)
            try:
                args, kwargs = _marked((args, kwargs), path, "inputs")
                with module_scope(path):
                    output = original(self, *args, **kwargs)
            finally:
                active.discard(path)
            if returned is not None:
                returned((path, count.get(path, 0)), output)
            count[path] = count.get(path, 0) + 1
            return _marked(output, path, "outputs")

        return call

    with innermost(wrap), replaced_calls(callable_classes(module_types(model)), wrap):
        yield


def _marked(tree: Any, path: str, where: str) -> Any:
    found = tensors(tree)
    return with_tensors(tree, mark_p.bind(*found, path=path, where=where)) if found else tree


class _Evaluation:
    """Evaluate a jaxpr; marks pass their arrays to `before` and `after`."""

    def __init__(self, before: Replace, after: Replace) -> None:
        self._before, self._after = before, after
        self._count: dict[str, int] = {}
        self._open: dict[str, list[int]] = {}

    def run(self, jaxpr: core.Jaxpr, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
        values: dict[Any, Any] = {}

        def read(variable: Any) -> Any:
            return variable.val if isinstance(variable, core.Literal) else values[variable]

        values.update(zip(jaxpr.constvars, consts, strict=True))
        values.update(zip(jaxpr.invars, arguments, strict=True))
        for equation in jaxpr.eqns:
            results = self._equation(jaxpr, equation, [read(x) for x in equation.invars])
            values.update(zip(equation.outvars, results, strict=True))
        return [read(x) for x in jaxpr.outvars]

    def _equation(self, jaxpr: core.Jaxpr, equation: core.JaxprEqn, given: list[Any]) -> Sequence[Any]:
        name = equation.primitive.name
        if equation.primitive is mark_p:
            return self._mark(given, **equation.params)
        inner = equation.params.get("jaxpr") or equation.params.get("call_jaxpr")
        if inner is not None and _holds_marks(inner):
            if name in _OPENED:
                return self._call(inner, given)
            if name == "scan":
                return self._scan(given, equation.params)
        return _alone(jaxpr, equation, given)

    def _call(self, inner: Any, given: Sequence[Any]) -> list[Any]:
        closed = hasattr(inner, "consts")
        return self.run(inner.jaxpr if closed else inner, inner.consts if closed else (), given)

    def _mark(self, arrays: list[Any], *, path: str, where: str) -> list[Any]:
        if where == "inputs":
            index = self._count.get(path, 0)
            self._count[path] = index + 1
            self._open.setdefault(path, []).append(index)
            return self._before((path, index), arrays) or arrays
        waiting = self._open.get(path)
        if not waiting:  # a call without array arguments
            waiting = [self._count.get(path, 0)]
            self._count[path] = waiting[0] + 1
            self._before((path, waiting[0]), [])
        key: Key = (path, waiting.pop())
        return self._after(key, arrays) or arrays

    def _scan(self, given: Sequence[Any], params: Any) -> list[Any]:
        """Evaluate a scan, unrolled."""
        consts, carry = params["num_consts"], params["num_carry"]
        fixed, state, rows = given[:consts], list(given[consts : consts + carry]), given[consts + carry :]
        steps = range(params["length"])
        collected: list[list[Any]] = []
        for i in reversed(steps) if params["reverse"] else steps:
            found = self._call(params["jaxpr"], [*fixed, *state, *(x[i] for x in rows)])
            state = found[:carry]
            collected.append(found[carry:])
        if params["reverse"]:
            collected.reverse()
        return [*state, *(jnp.stack(column) for column in zip(*collected, strict=True))]


def _alone(jaxpr: core.Jaxpr, equation: core.JaxprEqn, given: Sequence[Any]) -> Sequence[Any]:
    """Evaluate one equation of `jaxpr`."""
    pairs = [(x, value) for x, value in zip(equation.invars, given, strict=True) if not isinstance(x, core.Literal)]
    values = dict(pairs)
    single = jaxpr.replace(constvars=[], invars=list(values), outvars=list(equation.outvars), eqns=[equation])
    results: Sequence[Any] = core.jaxpr_as_fun(core.ClosedJaxpr(single, ()))(*values.values())
    return results


def _holds_marks(inner: Any) -> bool:
    jaxpr = getattr(inner, "jaxpr", inner)
    if any(equation.primitive is mark_p for equation in jaxpr.eqns):
        return True
    return any(_holds_marks(sub) for sub in core.subjaxprs(jaxpr))


def jax_calls(
    model: nnx.Module,
    inputs: tuple[jax.Array, ...],
    reference: Mapping[Key, Call] | None = None,
    *,
    only: Collection[Key] | None = None,
    forced: jax.Array | None = None,
    apply: Apply = positional,
    returned: Returned | None = None,
) -> Calls:
    """Run `model` once and record its module calls; the run is forced if `reference` is given. May be traced.

    `forced` is a boolean array evaluated at run time, so one program can do both the free and the forced run. Tensors
    passed from one call to another are then recorded once (see `Passed`).

    Raises:
        OtherTypeError: With `forced`, a tensor differs from the reference's in shape or dtype.
    """
    recorder = Recorder(reference or {}, only, forced)
    apply(watched(model, recorder.replace_inputs, recorder.replace_outputs, returned), inputs)
    return recorder.calls
