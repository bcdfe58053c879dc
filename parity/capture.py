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
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import torch
from flax import nnx

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


# PyTorch


def _tensors(tree: Any) -> list[torch.Tensor]:
    leaves, _ = torch.utils._pytree.tree_flatten(tree)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _with_tensors(tree: Any, tensors: list[torch.Tensor]) -> Any:
    """`tree` with its tensors replaced, in order."""
    leaves, spec = torch.utils._pytree.tree_flatten(tree)
    supply = iter(tensors)
    return torch.utils._pytree.tree_unflatten(
        [next(supply) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves], spec
    )


def torch_calls(
    model: torch.nn.Module,
    inputs: tuple[torch.Tensor, ...],
    reference: Mapping[Key, Call] | None = None,
    *,
    copies: bool = True,
) -> Calls:
    """Runs `model` once without gradients and records every module's calls; forced if `reference` is given.

    With `copies`, what is recorded and what is handed out are copies, so that nothing done in place can change them.

    Raises:
        InPlaceError: without `copies`, a recorded tensor was changed in place.
    """
    keep: Callable[[torch.Tensor], torch.Tensor] = torch.clone if copies else torch.Tensor.detach
    calls: Calls = {}
    count: dict[str, int] = {}
    open_calls: list[tuple[Key, list[torch.Tensor]]] = []
    versions: list[tuple[torch.Tensor, int]] = []

    def record(tree: Any) -> list[torch.Tensor]:
        tensors = [tensor.detach() for tensor in _tensors(tree)]
        versions.extend((tensor, tensor._version) for tensor in tensors)
        return [tensor.clone() for tensor in tensors] if copies else tensors

    def before(name: str) -> Callable[..., Any]:
        def hook(module: torch.nn.Module, args: Any, kwargs: Any) -> Any:
            key = (name, count.get(name, 0))
            count[name] = key[1] + 1
            open_calls.append((key, record((args, kwargs))))
            known = reference.get(key) if reference is not None else None
            if known is None or known.inputs is None:
                return None
            return _with_tensors((args, kwargs), [keep(tensor) for tensor in known.inputs])

        return hook

    def after(module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        key, given = open_calls.pop()
        calls[key] = Call(given, record(output))
        if reference is not None and key in reference:
            return _with_tensors(output, [keep(tensor) for tensor in reference[key].outputs])
        return None

    handles = []
    try:
        for name, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(before(name), with_kwargs=True))
            handles.append(module.register_forward_hook(after, with_kwargs=True))
        with torch.no_grad():
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    if not copies and any(tensor._version != version for tensor, version in versions):
        raise InPlaceError
    return calls


class InPlaceError(Exception):
    """A model changes its activations in place, so they have to be copied as they are recorded."""


# JAX


def _opaque(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Pytree | nnx.Variable)


def _arrays(tree: Any) -> list[jax.Array]:
    return [leaf for leaf in jax.tree.leaves(tree, is_leaf=_opaque) if isinstance(leaf, jax.Array)]


def _with_arrays(tree: Any, arrays: list[jax.Array]) -> Any:
    supply = iter(arrays)
    return jax.tree.map(lambda leaf: next(supply) if isinstance(leaf, jax.Array) else leaf, tree, is_leaf=_opaque)


@contextlib.contextmanager
def _intercept(model: nnx.Module, around: Callable[..., Any]) -> Iterator[None]:
    """While open, calls of `model`'s modules go through around(name, original, args, kwargs)."""
    names = {id(module): ".".join(map(str, path)) for path, module in nnx.iter_modules(model)}
    active: set[int] = set()

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: nnx.Module, *args: Any, **kwargs: Any) -> Any:
            # A subclass that calls super().__call__ is one call, not two.
            if id(self) not in names or id(self) in active:
                return original(self, *args, **kwargs)
            active.add(id(self))
            try:
                return around(
                    names[id(self)], lambda args, kwargs: original(self, *args, **kwargs), tuple(args), kwargs
                )
            finally:
                active.discard(id(self))

        return call

    classes = {
        base
        for _, module in nnx.iter_modules(model)
        for base in type(module).__mro__
        if "__call__" in vars(base) and issubclass(base, nnx.Pytree)
    }
    originals = {cls: vars(cls)["__call__"] for cls in classes}
    try:
        for cls, original in originals.items():
            cls.__call__ = wrap(original)
        yield
    finally:
        for cls, original in originals.items():
            cls.__call__ = original


def jax_calls(model: nnx.Module, inputs: tuple[jax.Array, ...], reference: Mapping[Key, Call] | None = None) -> Calls:
    """Runs `model` once and records every module's calls; forced if `reference` is given. May be traced."""
    calls: Calls = {}
    count: dict[str, int] = {}

    def around(name: str, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        key = (name, count.get(name, 0))
        count[name] = key[1] + 1
        given = _arrays((args, kwargs))
        known = reference.get(key) if reference is not None else None
        if known is not None and known.inputs is not None:
            args, kwargs = _with_arrays((args, kwargs), known.inputs)
        output = original(args, kwargs)
        calls[key] = Call(given, _arrays(output))
        return output if known is None else _with_arrays(output, known.outputs)

    with _intercept(model, around):
        model(*inputs)
    return calls
