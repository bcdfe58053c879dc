"""A flax model run in compiled pieces, of which those that are alike share one program.

A list of equal blocks is most of a deep model, and of the time to compile it whole. So the modules around such a list
run operation by operation, and the blocks and their neighbours are the pieces. A model without equal blocks is one
piece, as is one that does what pieces cannot (`UnfitError`).

On CPU the last stage of compiling, LLVM's optimiser, is left out: it may not change a rounding, and takes longer than
it saves. Only a convolution is worth it: left as plain loops, that of ViT's patches takes minutes.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from parity.recording.capture import ROOT, Call, Calls, Key, Recorder, opaque, resolved
from parity.recording.inputs import Apply, positional
from parity.recording.structure import Rebuild, flatten, tensors, with_tensors
from parity.recording.transformations import has_paths, watched

Work = Callable[[nnx.Module, Any, Any, Any], Any]
"""What is done in a piece, of its module, its arguments, its keyword arguments and further arrays. It is hashable, and
two that are equal do the same.
"""


class UnfitError(Exception):
    """A piece is called twice, has a part that is called from outside, changes its variables, is handed a module, or
    has attributes by which alike ones cannot be told (a dict, a set).
    """


def piece_names(model: nnx.Module) -> frozenset[str]:
    """Paths of the modules that are pieces; {""} for the whole model, as where modules carry their paths."""
    if has_paths(model):
        return frozenset({""})
    modules = dict(nnx.iter_modules(model))
    filled = {path[:end] for path in modules for end in range(len(path))}
    members = [path for path in modules if path in filled and path and isinstance(path[-1], int)]
    try:
        alike = collections.Counter((path[:-1], nnx.graphdef(modules[path])) for path in members)
    except TypeError:  # attributes without a hash
        return frozenset({""})
    around = {path[:end] for (path, _), count in alike.items() if count > 1 for end in range(len(path) + 1)}
    return frozenset(dotted(path) for path in modules if path not in around and _inside(path, modules) <= around)


def _inside(path: tuple[Any, ...], modules: Collection[tuple[Any, ...]]) -> set[tuple[Any, ...]]:
    """The modules around `path`."""
    return {path[:end] for end in range(len(path)) if path[:end] in modules}


def dotted(path: Sequence[Any]) -> str:
    return ".".join(map(str, path))


def convolves(model: nnx.Module) -> bool:
    """Whether there is a convolution over more than one pixel."""
    convolutions = (module for _, module in nnx.iter_modules(model) if isinstance(module, nnx.Conv))
    return any(math.prod(module.kernel_size) > 1 for module in convolutions)


def compiler_options(model: nnx.Module) -> dict[str, Any]:
    """For `model` on this backend."""
    if jax.default_backend() != "cpu" or convolves(model):
        return {}
    return {"xla_backend_optimization_level": 0}


class Pieces:
    """The pieces of one model, in one precision.

    First the model is traced, inside `jax.eval_shape`, and each different piece begins to compile; then it runs.
    """

    def __init__(self, names: Collection[str], pool: Executor, *, gradients: bool = False) -> None:
        """
        Args:
            names: see `piece_names`.
            pool: threads to compile in.
            gradients: whether the model runs inside `jax.grad`. The backward pass of a piece computes its forward pass
                again, so that what is inside needs no memory until then.
        """
        self.names = frozenset(names)
        self.tracing = True
        self._pool, self._gradients = pool, gradients
        self._programs: dict[Any, _Program] = {}

    def ready(self) -> None:
        """Waits until all is compiled; from now on calls are computed."""
        for program in self._programs.values():
            program.wait()
        self.tracing = False

    def __call__(self, work: Work, module: nnx.Module, args: Any, kwargs: Any, given: Any) -> Any:
        """`work(module, args, kwargs, given)`, compiled.

        Raises:
            UnfitError: while tracing, if that would not be the same.
        """
        if any(opaque(x) for x in jax.tree.leaves((args, kwargs), is_leaf=opaque)):
            raise UnfitError
        graphdef, state = nnx.split(module)
        leaves, tree = jax.tree.flatten((state, args, kwargs, given))
        arrays = [x for x in leaves if _is_array(x)]
        fixed = tuple((i, x) for i, x in enumerate(leaves) if not _is_array(x))
        key = self._key(work, graphdef, tree, fixed, *map(_kind, arrays))
        if key not in self._programs:
            self._programs[key] = _Program(work, graphdef, tree, dict(fixed), may_change=self.names == {""})
        program = self._programs[key]
        if self.tracing:
            return program.result(program.trace(arrays, module, self._pool, gradients=self._gradients))
        return program.result(program.differentiable(arrays) if self._gradients else program.compute(arrays))

    def _key(self, *parts: Any) -> tuple[Any, ...]:
        """Of calls that share a program."""
        if self.names == {""}:
            return ()  # there is but one
        try:
            hash(parts)
        except TypeError:
            raise UnfitError from None
        return parts


_ARRAY = object()
"""Stands for an array among the leaves of a result."""


class _Program:
    """One piece, for all calls that are alike; made from the first of them."""

    def __init__(self, work: Work, graphdef: Any, tree: Any, fixed: Mapping[int, Any], *, may_change: bool) -> None:
        self._work, self._graphdef, self._tree, self._fixed = work, graphdef, tree, fixed
        self._may_change = may_change
        self.forward: Future[jax.stages.Compiled] | None = None
        self.backward: Future[jax.stages.Compiled] | None = None
        self._traced = jax.jit(self._arrays)
        self._form: tuple[Rebuild, list[Any]] | None = None

    def _arrays(self, *arrays: jax.Array) -> list[jax.Array]:
        """The arrays of what the work gives, in order."""
        supply = iter(arrays)
        leaves = [self._fixed[i] if i in self._fixed else next(supply) for i in range(self._tree.num_leaves)]
        state, args, kwargs, given = jax.tree.unflatten(self._tree, leaves)
        module = nnx.merge(self._graphdef, state)
        before = jax.tree.leaves(nnx.state(module))
        found, rebuild = flatten(self._work(module, args, kwargs, given))
        after = jax.tree.leaves(nnx.state(module))
        if not self._may_change and any(a is not b for a, b in zip(before, after, strict=True)):
            raise UnfitError
        self._form = rebuild, [_ARRAY if _is_array(x) else x for x in found]
        return [jnp.asarray(x) for x in found if _is_array(x)]

    def wait(self) -> None:
        for compiling in (self.forward, self.backward):
            if compiling is not None:
                compiling.result()

    def result(self, arrays: Sequence[Any]) -> Any:
        """What the work gives, with these arrays."""
        assert self._form is not None
        rebuild, others = self._form
        supply = iter(arrays)
        return rebuild([next(supply) if x is _ARRAY else x for x in others])

    def trace(self, arrays: Sequence[Any], module: nnx.Module, pool: Executor, *, gradients: bool) -> list[jax.Array]:
        """The arrays as shapes; the first time compiling begins."""
        found = self._traced(*arrays)
        if self.forward is None:
            options = compiler_options(module)
            kinds = [_kind(x) for x in arrays]
            self.forward = pool.submit(self._traced.lower(*kinds).compile, options)
            if gradients:
                cotangents = [_kind(x) for x in found if _moves(x)]
                self.backward = pool.submit(jax.jit(self._pullback).lower(kinds, cotangents).compile, options)
        return found

    def _pullback(self, arrays: Sequence[Any], cotangents: Sequence[jax.Array]) -> list[jax.Array]:
        """Gradients of the floating arrays, from those of what is floating of the result."""

        def function(moving: Sequence[jax.Array]) -> list[jax.Array]:
            supply = iter(moving)
            found = self._arrays(*(next(supply) if _moves(x) else x for x in arrays))
            return [x for x in found if _moves(x)]

        _, pullback = jax.vjp(function, [x for x in arrays if _moves(x)])
        return pullback(list(cotangents))[0]

    def compute(self, arrays: Sequence[Any]) -> list[jax.Array]:
        assert self.forward is not None
        return self.forward.result()(*arrays)

    def differentiable(self, arrays: Sequence[Any]) -> list[jax.Array]:
        """The arrays of the result, for `jax.grad`."""
        moves = [_moves(x) for x in arrays]
        others = [None if moving else x for x, moving in zip(arrays, moves, strict=True)]

        def whole(moving: Sequence[Any]) -> list[Any]:
            supply = iter(moving)
            return [next(supply) if x is None else x for x in others]

        @jax.custom_vjp
        def run(moving: list[Any]) -> list[jax.Array]:
            return self.compute(whole(moving))

        def back(moving: list[Any], cotangents: list[Any]) -> tuple[list[jax.Array]]:
            assert self.backward is not None
            return (self.backward.result()(whole(moving), [x for x in cotangents if x.dtype != jax.dtypes.float0]),)

        run.defvjp(lambda moving: (run(moving), moving), back)
        return run([x for x, moving in zip(arrays, moves, strict=True) if moving])


def begin(
    names: Collection[str], pool: Executor, run: Callable[..., Any], *args: Any, gradients: bool = False
) -> Pieces:
    """Pieces that have begun to compile, for `run(pieces, *args)`.

    Raises:
        UnfitError: they cannot be pieces.
    """
    pieces = Pieces(names, pool, gradients=gradients)
    jax.eval_shape(functools.partial(run, pieces), *args)
    return pieces


class InPieces:
    """Hands the calls of pieces to `compute`, which gives their outputs: see `jax_hooks`."""

    def __init__(self, pieces: Pieces, compute: Callable[[Key, nnx.Module, Any, Any], Any]) -> None:
        self._names, self._compute = pieces.names, compute

    def takes(self, key: Key) -> bool:
        """Whether the call is a piece's.

        Raises:
            UnfitError: it is a second one, or of a module inside a piece.
        """
        name, index = key
        if (name in self._names and index) or any(name.startswith(f"{piece}.") for piece in self._names if piece):
            raise UnfitError
        return name in self._names

    def __call__(self, key: Key, module: nnx.Module, args: Any, kwargs: Any) -> Any:
        return self._compute(key, module, args, kwargs)


V = TypeVar("V")


def within(name: str, values: Mapping[Key, V]) -> dict[Key, V]:
    """Those of the calls inside the module `name`, named from it."""
    start = f"{name}." if name else ""
    return {(path[len(start) :], i): value for (path, i), value in values.items() if path and path.startswith(start)}


def around(name: str, key: Key) -> Key:
    """The call `key`, named from the module `name`, as the whole model names it."""
    return (f"{name}.{key[0]}" if name else key[0]), key[1]


def jax_calls_in_pieces(
    pieces: Pieces,
    model: nnx.Module,
    inputs: tuple[jax.Array, ...],
    reference: Mapping[Key, Call],
    *,
    only: Collection[Key],
    forced: bool | None,
    apply: Apply = positional,
) -> Calls:
    """As `jax_calls`, compiled in pieces. Those for a `forced` that is False or True are the same; None: always.

    Raises:
        OtherTypeError, UnfitError: while `pieces` is tracing.
    """
    told: Any = None if forced is None else np.bool_(forced)
    if pieces.tracing:  # a run of either kind
        recorder = Recorder(reference, only, told)
    else:
        recorder = Recorder({} if forced is False else reference, only, None)

    def compute(key: Key, module: nnx.Module, args: Any, kwargs: Any) -> Any:
        work = _Recording(frozenset(within(key[0], dict.fromkeys(only))))
        known = within(key[0], reference)
        output, found = pieces(work, module, args, kwargs, (known, told))
        leaves, rebuild = flatten(output)
        calls = resolved({ROOT: Call(tensors((args, kwargs)), leaves), **found}, None if forced is False else known)
        recorder.calls.update({around(key[0], inner): call for inner, call in calls.items() if inner != ROOT})
        return rebuild(calls[ROOT].outputs)

    inside = InPieces(pieces, compute)
    apply(watched(model, recorder.replace_inputs, recorder.replace_outputs, inside=inside), inputs)
    return recorder.calls


@dataclasses.dataclass(frozen=True)
class _Recording:
    """What a piece does to record the calls in `only`, named from it, without its own; its output and those calls."""

    only: frozenset[Key]

    def __call__(self, module: nnx.Module, args: Any, kwargs: Any, given: tuple[Calls, Any]) -> tuple[Any, Calls]:
        recorder = Recorder(given[0], self.only, given[1])
        recorder.meet(ROOT, "inputs", tensors((args, kwargs)))
        output = watched(module, recorder.replace_inputs, recorder.replace_outputs)(*args, **kwargs)
        return with_tensors(output, [recorder.passed(x) for x in tensors(output)]), recorder.calls


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic)


def _moves(array: Any) -> bool:
    return jnp.issubdtype(array.dtype, jnp.floating)


def _kind(array: Any) -> jax.ShapeDtypeStruct:
    aval = jax.typeof(array)
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type)
