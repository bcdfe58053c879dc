"""Run a flax model in separately compiled blocks, where identical blocks share one program.

Most of a deep model, and of its compile time, is a list of identical blocks. The modules that contain such a list
run operation by operation; the blocks in it, and their siblings, are compiled. A model without identical blocks is
compiled as a whole, as is one whose blocks cannot be separated (`SeparationError`).

On CPU the LLVM optimization passes are disabled: they are not allowed to change any rounding, and take longer than
they save. They only pay off for convolutions: as plain loops, the one of ViT's patch embedding takes minutes.
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

from parity.carry.program import Program
from parity.recording.capture import ROOT, Call, Calls, Key, Recorder, opaque, resolved
from parity.recording.inputs import Apply, positional
from parity.recording.structure import Rebuild, flatten, tensors, with_tensors
from parity.recording.transformations import has_paths, watched

Work = Callable[[nnx.Module, Any, Any, Any], Any]
"""Function that is compiled, of a block's module, arguments, keyword arguments and further arrays. It is hashable, and
equal functions compute the same.
"""


class SeparationError(Exception):
    """The blocks of a model cannot be compiled separately.

    One of them is called twice, has a submodule that is called from outside, changes its variables, takes a module as
    argument, or has unhashable attributes (a dict, a set), so that identical blocks cannot be recognized.
    """


def block_names(model: nnx.Module) -> frozenset[str]:
    """Return the paths of the modules that are compiled separately; {""} for the whole model.

    The whole model is compiled, for example, if its modules store their paths.
    """
    if has_paths(model):
        return frozenset({""})
    modules = dict(nnx.iter_modules(model))
    filled = {path[:end] for path in modules for end in range(len(path))}
    members = [path for path in modules if path in filled and path and isinstance(path[-1], int)]
    try:
        alike = collections.Counter((path[:-1], nnx.graphdef(modules[path])) for path in members)
    except TypeError:  # unhashable attributes
        return frozenset({""})
    around = {path[:end] for (path, _), count in alike.items() if count > 1 for end in range(len(path) + 1)}
    return frozenset(dotted(path) for path in modules if path not in around and _inside(path, modules) <= around)


def _inside(path: tuple[Any, ...], modules: Collection[tuple[Any, ...]]) -> set[tuple[Any, ...]]:
    """Return the modules that contain `path`."""
    return {path[:end] for end in range(len(path)) if path[:end] in modules}


def dotted(path: Sequence[Any]) -> str:
    return ".".join(map(str, path))


def convolves(model: nnx.Module) -> bool:
    """Return whether the model has a convolution with a kernel of more than one pixel."""
    convolutions = (module for _, module in nnx.iter_modules(model) if isinstance(module, nnx.Conv))
    return any(math.prod(module.kernel_size) > 1 for module in convolutions)


def compiler_options(model: nnx.Module) -> dict[str, Any]:
    """Return the compiler options for `model` on this backend.

    Without optimization the CPU compiles several times as fast. A convolution would run many times slower, and a
    gradient of a graph convolution (jax 0.10.2: softplus, max and scatter-add in one program) came out as infinity, so
    programs of unknown content are compiled as usual.
    """
    if jax.default_backend() != "cpu" or isinstance(model, Program) or convolves(model):
        return {}
    return {"xla_backend_optimization_level": 0}


class CompiledBlocks:
    """The blocks of one model, in one precision.

    The model is first traced inside `jax.eval_shape`, which starts compiling each distinct block; then it runs.
    """

    def __init__(self, names: Collection[str], pool: Executor, *, gradients: bool = False) -> None:
        """
        Args:
            names: Paths of the blocks, see `block_names`.
            pool: Threads used for compiling.
            gradients: Whether the model runs inside `jax.grad`. The backward pass of a block recomputes its forward
                pass, so that its intermediate values need no memory before.
        """
        self.names = frozenset(names)
        self.tracing = True
        self._pool, self._gradients = pool, gradients
        self._programs: dict[Any, _Program] = {}

    def ready(self) -> None:
        """Wait until everything is compiled; later calls are computed."""
        for program in self._programs.values():
            program.wait()
        self.tracing = False

    def __call__(self, work: Work, module: nnx.Module, args: Any, kwargs: Any, given: Any) -> Any:
        """Compute `work(module, args, kwargs, given)`, compiled.

        Raises:
            SeparationError: Compiling the block would change the result; raised while tracing.
        """
        if any(opaque(x) for x in jax.tree.leaves((args, kwargs), is_leaf=opaque)):
            raise SeparationError
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
        """Return the key of the program of a call; calls with the same key share it."""
        if self.names == {""}:
            return ()  # there is only one program
        try:
            hash(parts)
        except TypeError:
            raise SeparationError from None
        return parts


_ARRAY = object()
"""Placeholder for an array among the leaves of a result."""


class _Program:
    """The program of one block, built from its first call and shared by all identical calls."""

    def __init__(self, work: Work, graphdef: Any, tree: Any, fixed: Mapping[int, Any], *, may_change: bool) -> None:
        self._work, self._graphdef, self._tree, self._fixed = work, graphdef, tree, fixed
        self._may_change = may_change
        self.forward: Future[jax.stages.Compiled] | None = None
        self.backward: Future[jax.stages.Compiled] | None = None
        self._traced = jax.jit(self._arrays)
        self._form: tuple[Rebuild, list[Any]] | None = None

    def _arrays(self, *arrays: jax.Array) -> list[jax.Array]:
        """Return the arrays of the result of `work`, in order."""
        supply = iter(arrays)
        leaves = [self._fixed[i] if i in self._fixed else next(supply) for i in range(self._tree.num_leaves)]
        state, args, kwargs, given = jax.tree.unflatten(self._tree, leaves)
        module = nnx.merge(self._graphdef, state)
        before = jax.tree.leaves(nnx.state(module))
        found, rebuild = flatten(self._work(module, args, kwargs, given))
        after = jax.tree.leaves(nnx.state(module))
        if not self._may_change and any(a is not b for a, b in zip(before, after, strict=True)):
            raise SeparationError
        self._form = rebuild, [_ARRAY if _is_array(x) else x for x in found]
        return [jnp.asarray(x) for x in found if _is_array(x)]

    def wait(self) -> None:
        for compiling in (self.forward, self.backward):
            if compiling is not None:
                compiling.result()

    def result(self, arrays: Sequence[Any]) -> Any:
        """Return the result of `work`, rebuilt from these arrays."""
        assert self._form is not None
        rebuild, others = self._form
        supply = iter(arrays)
        return rebuild([next(supply) if x is _ARRAY else x for x in others])

    def trace(self, arrays: Sequence[Any], module: nnx.Module, pool: Executor, *, gradients: bool) -> list[jax.Array]:
        """Return the traced arrays of the result; the first call starts compiling."""
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
        """Return the gradients of the floating inputs, given those of the floating outputs."""

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
        """Return the arrays of the result, differentiable by `jax.grad`."""
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


def start_compiling(
    names: Collection[str], pool: Executor, run: Callable[..., Any], *args: Any, gradients: bool = False
) -> CompiledBlocks:
    """Start compiling the blocks of `run(blocks, *args)`, and return them.

    Raises:
        SeparationError: The model cannot be split into these blocks.
    """
    blocks = CompiledBlocks(names, pool, gradients=gradients)
    jax.eval_shape(functools.partial(run, blocks), *args)
    return blocks


class BlockDispatcher:
    """Dispatch the calls of blocks to `compute`, which returns their outputs: see `jax_hooks`."""

    def __init__(self, blocks: CompiledBlocks, compute: Callable[[Key, nnx.Module, Any, Any], Any]) -> None:
        self._names, self._compute = blocks.names, compute

    def takes(self, key: Key) -> bool:
        """Return whether the call is one of a block.

        Raises:
            SeparationError: The block was called before, or the call is one of a module inside a block.
        """
        name, index = key
        if (name in self._names and index) or any(name.startswith(f"{block}.") for block in self._names if block):
            raise SeparationError
        return name in self._names

    def __call__(self, key: Key, module: nnx.Module, args: Any, kwargs: Any) -> Any:
        return self._compute(key, module, args, kwargs)


V = TypeVar("V")


def within(name: str, values: Mapping[Key, V]) -> dict[Key, V]:
    """Return the entries for calls inside the module `name`, with keys relative to it."""
    start = f"{name}." if name else ""
    return {(path[len(start) :], i): value for (path, i), value in values.items() if path and path.startswith(start)}


def around(name: str, key: Key) -> Key:
    """Convert a key relative to the module `name` to a key of the whole model."""
    return (f"{name}.{key[0]}" if name else key[0]), key[1]


def jax_calls_in_blocks(
    blocks: CompiledBlocks,
    model: nnx.Module,
    inputs: tuple[jax.Array, ...],
    reference: Mapping[Key, Call],
    *,
    only: Collection[Key],
    forced: bool | None,
    apply: Apply = positional,
) -> Calls:
    """Record calls as `jax_calls` does, compiled in blocks.

    The blocks are the same whether `forced` is False or True; with None, every run is forced.

    Raises:
        OtherTypeError, SeparationError: See there; raised while `blocks` is tracing.
    """
    told: Any = None if forced is None else np.bool_(forced)
    if blocks.tracing:  # traced for both kinds of run
        recorder = Recorder(reference, only, told)
    else:
        recorder = Recorder({} if forced is False else reference, only, None)

    def compute(key: Key, module: nnx.Module, args: Any, kwargs: Any) -> Any:
        work = _Recording(frozenset(within(key[0], dict.fromkeys(only))))
        known = within(key[0], reference)
        output, found = blocks(work, module, args, kwargs, (known, told))
        leaves, rebuild = flatten(output)
        calls = resolved({ROOT: Call(tensors((args, kwargs)), leaves), **found}, None if forced is False else known)
        recorder.calls.update({around(key[0], inner): call for inner, call in calls.items() if inner != ROOT})
        return rebuild(calls[ROOT].outputs)

    inside = BlockDispatcher(blocks, compute)
    apply(watched(model, recorder.replace_inputs, recorder.replace_outputs, inside=inside), inputs)
    return recorder.calls


@dataclasses.dataclass(frozen=True)
class _Recording:
    """Work of a block that returns its output and the calls in `only` (keys relative to the block, without its own)."""

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
