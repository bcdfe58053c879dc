"""What every module takes and gives, in both frameworks, in one forward pass.

Two modes share one mechanism:

- free: the model runs as it is, and each call of a module is recorded (tensors in, tensors out).
- forced: each call is computed from the *reference's* inputs and, after its result is recorded, returns the
  *reference's* outputs to its caller. So every module is judged on its own arithmetic alone: an inner module gets
  correct inputs, an outer one gets correct results from its children, and a wrong one spoils nothing behind it.
  What a caller passes to its children is recorded before it is replaced; that is the caller's own arithmetic too.

A call is named (module path, how many times that module was called before in this pass).
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import jax
import torch
from flax import nnx
from jax.extend.core import get_opaque_trace_state

from parity.precision.jax_casts import module_scope
from parity.recording.structure import Leaf, tensors, with_tensors

Key = tuple[str, int]


@dataclasses.dataclass
class Call:
    """One call of one module: its tensors in and out, flattened, in the framework's own type and layout.

    As a reference, `inputs` may be None: the caller's own are used then.
    """

    inputs: list[Any] | None
    outputs: list[Any]


jax.tree_util.register_dataclass(Call, data_fields=["inputs", "outputs"], meta_fields=[])

Calls = dict[Key, Call]
"""Calls in the order in which they returned: an inner module comes before the one around it."""

ROOT: Key = ("", 0)
"""The model's own call."""

Where = Literal["inputs", "outputs"]

Replace = Callable[[Key, list[Any]], "list[Any] | None"]
"""Given a call and its tensors, those to take their place; None leaves them as they are."""

Returned = Callable[[Key, Any], None]
"""Given a call and all that it returns."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Passed(Leaf):
    """In place of a tensor that was an earlier call's: a program need not return it again. See `resolved`.

    `replaced`: in a forced run it is the reference's.
    """

    key: Key
    where: Where
    index: int
    replaced: bool


def resolved(calls: Calls, reference: Mapping[Key, Call] | None) -> Calls:
    """`calls` with the tensors that `Passed` stands for; `reference` is what forced them (None: they ran free)."""

    def tensor(found: Any) -> Any:
        while isinstance(found, Passed):
            source = reference if found.replaced and reference is not None else calls
            found = getattr(source[found.key], found.where)[found.index]
        return found

    def tensors(found: list[Any] | None) -> list[Any] | None:
        return None if found is None else [tensor(x) for x in found]

    return {key: Call(tensors(call.inputs), tensors(call.outputs) or []) for key, call in calls.items()}


class InPlaceError(Exception):
    """A model changes its activations in place, so they have to be copied as they are recorded."""


class NestedCallError(Exception):
    """A module is called inside `jax.jit`, a remat or the like: see `parity.recording.transformations`."""


class OtherTypeError(Exception):
    """A tensor is of another type than the reference's: one program cannot pass on the one or the other."""


# PyTorch


@contextlib.contextmanager
def torch_hooks(
    model: torch.nn.Module, replace_inputs: Replace, replace_outputs: Replace, returned: Returned | None = None
) -> Iterator[None]:
    """While open, every call of every module of `model` shows its tensors to the two functions, before and after.

    `returned` is shown all that the call returns, before anything is replaced.
    """
    count: dict[str, int] = {}
    open_calls: list[Key] = []
    handles = []

    def before(name: str) -> Callable[..., Any]:
        def hook(module: torch.nn.Module, args: Any, kwargs: Any) -> Any:
            key = (name, count.get(name, 0))
            count[name] = key[1] + 1
            open_calls.append(key)
            new = replace_inputs(key, tensors((args, kwargs)))
            return None if new is None else with_tensors((args, kwargs), new)

        return hook

    def after(module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        key = open_calls.pop()
        if returned is not None:
            returned(key, output)
        new = replace_outputs(key, tensors(output))
        return None if new is None else with_tensors(output, new)

    try:
        for name, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(before(name), with_kwargs=True))
            handles.append(module.register_forward_hook(after, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def torch_calls(
    model: torch.nn.Module,
    inputs: tuple[torch.Tensor, ...],
    reference: Mapping[Key, Call] | None = None,
    *,
    copies: bool = True,
    only: Collection[Key] | None = None,
    apply: Callable[[Any, Sequence[Any]], Any] = lambda model, tensors: model(*tensors),
) -> Calls:
    """Runs `model` once without gradients and records the calls of its modules; forced if `reference` is given.

    With `copies`, what is recorded and what is handed out are copies, so that nothing done in place can change them.
    `only` limits what is recorded.

    Raises:
        InPlaceError: without `copies`, a recorded tensor was changed in place.
    """
    keep: Callable[[torch.Tensor], torch.Tensor] = torch.clone if copies else torch.Tensor.detach
    calls: Calls = {}
    given: dict[Key, list[torch.Tensor]] = {}
    versions: list[tuple[torch.Tensor, int]] = []
    known = reference or {}

    def record(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        versions.extend((tensor, tensor._version) for tensor in tensors)
        return [keep(tensor) for tensor in tensors]

    def replace_inputs(key: Key, tensors: list[torch.Tensor]) -> list[torch.Tensor] | None:
        if only is None or key in only:
            given[key] = record(tensors)
        inputs = known[key].inputs if key in known else None
        return None if inputs is None else [keep(tensor) for tensor in inputs]

    def replace_outputs(key: Key, tensors: list[torch.Tensor]) -> list[torch.Tensor] | None:
        if key in given:
            calls[key] = Call(given.pop(key), record(tensors))
        return [keep(tensor) for tensor in known[key].outputs] if key in known else None

    with torch_hooks(model, replace_inputs, replace_outputs), torch.no_grad():
        apply(model, inputs)
    if not copies and any(tensor._version != version for tensor, version in versions):
        raise InPlaceError
    return calls


# JAX


def opaque(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Pytree | nnx.Variable)


class Inside(Protocol):
    """What computes the calls of some modules in its own way, those of the modules inside them too."""

    def takes(self, key: Key) -> bool: ...

    def __call__(self, key: Key, module: nnx.Module, args: Any, kwargs: Any) -> Any: ...


def module_types(model: nnx.Module) -> set[type]:
    """The types of the modules of `model`."""
    return {type(module) for _, module in nnx.iter_modules(model)}


def callable_classes(types: Collection[type]) -> set[type]:
    """The classes that define how modules of these types are called."""
    return {base for cls in types for base in cls.__mro__ if "__call__" in vars(base) and issubclass(base, nnx.Pytree)}


@contextlib.contextmanager
def replaced_calls(
    classes: Collection[type], wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """While open, instances of `classes` are called through `wrap` of what they define."""
    originals = {cls: vars(cls)["__call__"] for cls in classes}
    try:
        for cls, original in originals.items():
            setattr(cls, "__call__", wrap(original))  # noqa: B010  (mypy refuses to assign a method)
        yield
    finally:
        for cls, original in originals.items():
            setattr(cls, "__call__", original)  # noqa: B010


@contextlib.contextmanager
def jax_hooks(
    model: nnx.Module,
    replace_inputs: Replace,
    replace_outputs: Replace,
    inside: Inside | None = None,
    returned: Returned | None = None,
    *,
    skip_nested: bool = False,
) -> Iterator[None]:
    """The same for the modules of a flax model; may be traced.

    With `skip_nested`, calls inside another trace (of `jax.jit` for example) are left alone.

    Raises:
        NestedCallError: a module is called inside another trace than the one in which this was opened.
    """
    modules = list(nnx.iter_modules(model))
    names = {id(module): ".".join(map(str, path)) for path, module in modules}
    types = {type(module) for _, module in modules}
    count: dict[str, int] = {}
    active: set[int] = set()
    trace, me = get_opaque_trace_state(convention="nnx"), object()

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: nnx.Module, *args: Any, **kwargs: Any) -> Any:
            if get_opaque_trace_state(convention="nnx") != trace:
                # Hooks that were opened within that trace look after what is inside.
                if not skip_nested and _innermost.get() is me and (id(self) in names or type(self) in types):
                    raise NestedCallError
                return original(self, *args, **kwargs)
            # A subclass that calls super().__call__ is one call, not two.
            if id(self) not in names or id(self) in active:
                return original(self, *args, **kwargs)
            name = names[id(self)]
            key = (name, count.get(name, 0))
            count[name] = key[1] + 1
            new = replace_inputs(key, tensors((args, kwargs)))
            if new is not None:
                args, kwargs = with_tensors((args, kwargs), new)
            active.add(id(self))
            try:
                if inside is not None and inside.takes(key):
                    output = inside(key, self, args, kwargs)
                else:
                    with module_scope(name):
                        output = original(self, *args, **kwargs)
            finally:
                active.discard(id(self))
            if returned is not None:
                returned(key, output)
            new = replace_outputs(key, tensors(output))
            return output if new is None else with_tensors(output, new)

        return call

    with innermost(me), replaced_calls(callable_classes(types), wrap):
        yield


_innermost: contextvars.ContextVar[object] = contextvars.ContextVar("innermost hooks")


@contextlib.contextmanager
def innermost(hooks: object) -> Iterator[None]:
    """While open, these are the hooks that answer for calls inside another trace."""
    token = _innermost.set(hooks)
    try:
        yield
    finally:
        _innermost.reset(token)


class Recorder:
    """Records and replaces the tensors of calls: see `jax_calls`."""

    def __init__(self, known: Mapping[Key, Call], only: Collection[Key] | None, forced: jax.Array | None) -> None:
        self.calls: Calls = {}
        self._known, self._only, self._forced = known, only, forced
        self._given: dict[Key, list[Any]] = {}
        self._passed: dict[int, tuple[jax.Array, Passed]] = {}  # by identity, of arrays that are kept alive

    def replace_inputs(self, key: Key, arrays: list[jax.Array]) -> list[jax.Array] | None:
        if self._only is None or key in self._only:
            self._given[key] = self._record(key, "inputs", arrays)
        return self._chosen(key, "inputs", self._known[key].inputs, arrays) if key in self._known else None

    def replace_outputs(self, key: Key, arrays: list[jax.Array]) -> list[jax.Array] | None:
        if key in self._given:
            self.calls[key] = Call(self._given.pop(key), self._record(key, "outputs", arrays))
        return self._chosen(key, "outputs", self._known[key].outputs, arrays) if key in self._known else None

    def passed(self, array: jax.Array) -> Any:
        """`array`, or what stands for it where it was recorded before."""
        return self._passed[id(array)][1] if id(array) in self._passed else array

    def meet(self, key: Key, where: Where, arrays: Sequence[jax.Array]) -> None:
        """From now on these arrays have been recorded."""
        for i, x in enumerate(arrays):
            self._passed.setdefault(id(x), (x, Passed(key, where, i, replaced=False)))

    def _record(self, key: Key, where: Where, arrays: list[jax.Array]) -> list[Any]:
        if self._forced is None:
            return arrays
        found = [self.passed(x) for x in arrays]
        self.meet(key, where, arrays)
        return found

    def _chosen(
        self, key: Key, where: Where, wanted: list[jax.Array] | None, arrays: list[jax.Array]
    ) -> list[jax.Array] | None:
        if wanted is None or self._forced is None:
            return wanted
        new = _either(self._forced, wanted, arrays)
        if self._only is None or key in self._only:
            self._passed.update({id(x): (x, Passed(key, where, i, replaced=True)) for i, x in enumerate(new)})
        return new


def _either(forced: jax.Array, wanted: list[jax.Array], arrays: list[jax.Array]) -> list[jax.Array]:
    """`wanted` if forced, else `arrays`, bit for bit."""
    if [_type(x) for x in wanted] != [_type(x) for x in arrays]:
        raise OtherTypeError
    return [jax.lax.select(forced, a, b) for a, b in zip(wanted, arrays, strict=True)]


def _type(array: jax.Array) -> tuple[Any, ...]:
    return array.shape, array.dtype, array.weak_type
