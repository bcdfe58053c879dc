"""Record the inputs and outputs of every module in one forward pass, in both frameworks.

Two modes share one mechanism:

- free: the model runs unmodified, and each module call is recorded (input and output tensors).
- forced: each call is computed from the *reference's* inputs and, after its result is recorded, returns the
  *reference's* outputs to its caller. Each module is thus judged by its own arithmetic alone: an inner module gets
  correct inputs, an outer one gets correct results from its children, and an incorrect module does not affect later
  ones. What a caller passes to its children is part of the caller's arithmetic, so it is recorded before it is
  replaced.

A call is identified by (module path, number of earlier calls of that module in this pass).
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
    """One module call: its flattened input and output tensors, in the framework's own type and layout.

    In a reference, `inputs` may be None: the call then keeps its own inputs.
    """

    inputs: list[Any] | None
    outputs: list[Any]


jax.tree_util.register_dataclass(Call, data_fields=["inputs", "outputs"], meta_fields=[])

Calls = dict[Key, Call]
"""Calls in the order in which they returned: an inner module comes before its parent."""

ROOT: Key = ("", 0)
"""Key of the call of the model itself."""

Where = Literal["inputs", "outputs"]

Replace = Callable[[Key, list[Any]], "list[Any] | None"]
"""Function of a call and its tensors that returns their replacements, or None to keep them."""

Returned = Callable[[Key, Any], None]
"""Function of a call and its whole return value."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Passed(Leaf):
    """Placeholder for a tensor already recorded in an earlier call, so that a program need not return it twice.

    `replaced`: whether the tensor is the reference's (in a forced run). See `resolved`.
    """

    key: Key
    where: Where
    index: int
    replaced: bool


def resolved(calls: Calls, reference: Mapping[Key, Call] | None) -> Calls:
    """Replace every `Passed` in `calls` by its tensor; `reference` is the one of a forced run (None: a free run)."""

    def tensor(found: Any) -> Any:
        while isinstance(found, Passed):
            source = reference if found.replaced and reference is not None else calls
            found = getattr(source[found.key], found.where)[found.index]
        return found

    def tensors(found: list[Any] | None) -> list[Any] | None:
        return None if found is None else [tensor(x) for x in found]

    return {key: Call(tensors(call.inputs), tensors(call.outputs) or []) for key, call in calls.items()}


class InPlaceError(Exception):
    """A model modifies activations in place, so they have to be copied when recorded."""


class NestedCallError(Exception):
    """A module is called inside `jax.jit`, remat or the like: see `parity.recording.transformations`."""


class OtherTypeError(Exception):
    """A tensor has another type than the reference's, so one program cannot select between them."""


# PyTorch


@contextlib.contextmanager
def torch_hooks(
    model: torch.nn.Module, replace_inputs: Replace, replace_outputs: Replace, returned: Returned | None = None
) -> Iterator[None]:
    """Context manager that passes the tensors of every module call to the two functions, before and after the call.

    `returned` receives the whole return value of the call, before anything is replaced.
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
    """Run `model` once without gradients and record its module calls; the run is forced if `reference` is given.

    With `copies`, recorded and replaced tensors are copies, so in-place operations cannot modify them. `only` limits
    what is recorded.

    Raises:
        InPlaceError: A recorded tensor was modified in place, without `copies`.
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
    """Interface for computing the calls of some modules, including their submodules, in a custom way."""

    def takes(self, key: Key) -> bool: ...

    def __call__(self, key: Key, module: nnx.Module, args: Any, kwargs: Any) -> Any: ...


def module_types(model: nnx.Module) -> set[type]:
    """Return the types of the modules of `model`."""
    return {type(module) for _, module in nnx.iter_modules(model)}


def callable_classes(types: Collection[type]) -> set[type]:
    """Return the classes that define `__call__` for modules of these types."""
    return {base for cls in types for base in cls.__mro__ if "__call__" in vars(base) and issubclass(base, nnx.Pytree)}


@contextlib.contextmanager
def replaced_calls(
    classes: Collection[type], wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Context manager that replaces `__call__` of `classes` by `wrap(__call__)`."""
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
    """Context manager like `torch_hooks`, for the modules of a flax model; may be traced.

    With `skip_nested`, calls inside another trace (e.g. `jax.jit`) are ignored.

    Raises:
        NestedCallError: A module is called inside another trace than the one in which the context was entered.
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
                # Hooks opened within the inner trace handle the calls in it.
                if not skip_nested and _innermost.get() is me and (id(self) in names or type(self) in types):
                    raise NestedCallError
                return original(self, *args, **kwargs)
            # A subclass that calls super().__call__ counts as one call, not two.
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
    """Context manager that makes `hooks` responsible for calls inside another trace."""
    token = _innermost.set(hooks)
    try:
        yield
    finally:
        _innermost.reset(token)


class Recorder:
    """Record and replace the tensors of calls: see `jax_calls`."""

    def __init__(self, known: Mapping[Key, Call], only: Collection[Key] | None, forced: jax.Array | None) -> None:
        self.calls: Calls = {}
        self._known, self._only, self._forced = known, only, forced
        self._given: dict[Key, list[Any]] = {}
        self._passed: dict[int, tuple[jax.Array, Passed]] = {}  # by identity of the arrays, which are kept alive

    def replace_inputs(self, key: Key, arrays: list[jax.Array]) -> list[jax.Array] | None:
        if self._only is None or key in self._only:
            self._given[key] = self._record(key, "inputs", arrays)
        return self._chosen(key, "inputs", self._known[key].inputs, arrays) if key in self._known else None

    def replace_outputs(self, key: Key, arrays: list[jax.Array]) -> list[jax.Array] | None:
        if key in self._given:
            self.calls[key] = Call(self._given.pop(key), self._record(key, "outputs", arrays))
        return self._chosen(key, "outputs", self._known[key].outputs, arrays) if key in self._known else None

    def passed(self, array: jax.Array) -> Any:
        """Return `array`, or its placeholder if it was already recorded."""
        return self._passed[id(array)][1] if id(array) in self._passed else array

    def meet(self, key: Key, where: Where, arrays: Sequence[jax.Array]) -> None:
        """Mark these arrays as recorded."""
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
    """Return `wanted` if forced, else `arrays`, bit for bit."""
    if [_type(x) for x in wanted] != [_type(x) for x in arrays]:
        raise OtherTypeError
    return [jax.lax.select(forced, a, b) for a, b in zip(wanted, arrays, strict=True)]


def _type(array: jax.Array) -> tuple[Any, ...]:
    return array.shape, array.dtype, array.weak_type
