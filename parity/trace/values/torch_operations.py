"""Record every operation of a PyTorch model: its values as a fingerprint, its line, and what it was computed from."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from parity.carry.convert import to_numpy
from parity.recording.capture import Key
from parity.recording.structure import tensors
from parity.runs.torch_side import TorchSide
from parity.trace.values.fingerprint import Fingerprint
from parity.trace.values.source import torch_line


@dataclasses.dataclass(frozen=True)
class Operation:
    """One floating result of an operation.

    Attributes:
        name: Operation of PyTorch, e.g. "addmm".
        where: File and line of the model's code.
        owner: Call of the innermost module that runs the operation.
        inputs: Indices of the operations whose results it uses.
        numbers: Those among them whose numbers it uses, not only a mask or an index made from them.
        shape: Shape of the result.
        values: Fingerprint of the result.
    """

    name: str
    where: str
    owner: Key
    inputs: frozenset[int]
    numbers: frozenset[int]
    shape: tuple[int, ...]
    values: Fingerprint


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A floating tensor that a module takes or returns, and the operations that computed it.

    `index` is its position among all tensors that the module takes or returns.
    """

    index: int
    operations: frozenset[int]
    shape: tuple[int, ...]
    values: Fingerprint


@dataclasses.dataclass(frozen=True)
class ModuleCall:
    """A call of a module: its tensors, and the range of the operations between its start and its end."""

    key: Key
    operations: range
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@dataclasses.dataclass(frozen=True)
class TorchTrace:
    """All operations of one forward pass, in order, and the calls of the modules, in the order in which they return."""

    operations: tuple[Operation, ...]
    calls: tuple[ModuleCall, ...]

    def users(self) -> list[list[int]]:
        """Return for every operation the operations that use its numbers."""
        found: list[list[int]] = [[] for _ in self.operations]
        for i, operation in enumerate(self.operations):
            for source in operation.numbers:
                found[source].append(i)
        return found


def trace_torch(side: TorchSide, arrays: Sequence[np.ndarray]) -> TorchTrace:
    """Run the model once without gradients and record its operations."""
    recorder = _Recorder()
    with recorder.hooks(side.model), torch.no_grad(), side.wide(), recorder:
        side.apply(side.model, side.inputs(arrays))
    return TorchTrace(tuple(recorder.operations), tuple(recorder.calls))


@dataclasses.dataclass(frozen=True)
class Values:
    """The floating tensors that an operation takes, as it takes them, and its result.

    `call` is the number of the call of PyTorch. `again` computes the result with another array in place of the tensor
    with this index in `given`; it raises what PyTorch raises.
    """

    given: tuple[np.ndarray, ...]
    result: np.ndarray
    call: int
    again: Callable[[int, np.ndarray], np.ndarray]


def operation_values(
    side: TorchSide,
    arrays: Sequence[np.ndarray],
    wanted: Collection[int],
    *,
    instead: tuple[int, int, np.ndarray] | None = None,
) -> Mapping[int, Values]:
    """Run the model again and return the values of the operations with these indices.

    With `instead` (call, index, array), the operation of that `Values.call` is given the array in place of the tensor
    with this index in `Values.given`.
    """
    recorder = _Recorder(frozenset(wanted), instead)
    with recorder.hooks(side.model), torch.no_grad(), side.wide(), recorder:
        side.apply(side.model, side.inputs(arrays))
    return recorder.kept


MOST_RESULTS = 8
"""Largest number of tensors that one operation returns."""

UNWRITTEN = frozenset({"empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided"})
"""Operations whose result has no values yet."""

OVERWRITING = frozenset({"copy_", "fill_", "zero_"})
"""Operations that do not use what their first tensor held before."""


class _Recorder(TorchDispatchMode):
    """Mode that records operations; with `wanted`, only the values of some of them."""

    def __init__(
        self, wanted: frozenset[int] | None = None, instead: tuple[int, int, np.ndarray] | None = None
    ) -> None:
        super().__init__()
        self.wanted, self.instead = wanted, instead
        self.operations: list[Operation] = []
        self.calls: list[ModuleCall] = []
        self.kept: dict[int, Values] = {}
        self._count = self._called = 0
        self._writers: dict[StorageWeakRef, frozenset[int]] = {}
        """Storage -> the operations that computed what it holds; views share the storage of their base.

        An address would not do: after a storage is freed, another one may have its address.
        """
        self._parts: dict[StorageWeakRef, dict[tuple[int, int], frozenset[int]]] = {}
        """The same for views that show a part of a storage, by offset and number of elements."""
        self._open: list[tuple[Key, int, tuple[Tensor, ...]]] = [(("", 0), 0, ())]
        self._calls_of: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._called += 1
        if self.instead is not None and self._called == self.instead[0]:
            args, kwargs = _with((args, kwargs), *self.instead[1:])
        call = None
        if self.wanted is not None and not self.wanted.isdisjoint(range(self._count, self._count + MOST_RESULTS)):
            call = _Call(func, *_copied((args, kwargs)))  # it may work in place
        output = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        taken = _tensors((args, kwargs))[1 if name in OVERWRITING else 0 :]
        sources = frozenset().union(*map(self._computed_by, taken))
        numbers = frozenset().union(*(self._computed_by(x) for x in taken if x.is_floating_point()))
        results = [] if name in UNWRITTEN else _tensors(output)
        if func.is_view:
            results = [x for x in results if self._is_part(x)]
        where = torch_line() if results and self.wanted is None else ""
        for x in results:
            if not _floats(x):  # a mask or an index: what it was computed from counts as used by what uses it
                self._wrote(x, sources, view=func.is_view)
                continue
            index, self._count = self._count, self._count + 1
            self._wrote(x, frozenset((index,)), view=func.is_view)
            if self.wanted is None:
                values = Fingerprint.of(to_numpy(x))
                self.operations.append(
                    Operation(name, where, self._open[-1][0], sources, numbers, tuple(x.shape), values)
                )
            elif call is not None and index in self.wanted:
                again = functools.partial(call.again, [y is x for y in _tensors(output)].index(True))
                self.kept[index] = Values(call.given(), to_numpy(x).copy(), self._called, again)
        return output

    def _computed_by(self, tensor: torch.Tensor) -> frozenset[int]:
        """Return the operations that computed what a tensor holds."""
        storage = _storage(tensor)
        own = self._parts.get(storage, {}).get(_part(tensor))
        return self._writers.get(storage, frozenset()) if own is None else own

    def _is_part(self, tensor: torch.Tensor) -> bool:
        """Whether a view shows only a part of its storage, and one that was not seen before."""
        return _shows_part(tensor) and _part(tensor) not in self._parts.get(_storage(tensor), {})

    def _wrote(self, tensor: torch.Tensor, by: frozenset[int], *, view: bool) -> None:
        storage = _storage(tensor)
        if view:
            self._parts.setdefault(storage, {})[_part(tensor)] = by
            return
        self._parts.pop(storage, None)  # views that overlap may have changed
        if _shows_part(tensor):
            self._parts[storage] = {_part(tensor): by}
            by |= self._writers.get(storage, frozenset())
        self._writers[storage] = by

    def _described(self, tree: Any) -> tuple[Tensor, ...]:
        if self.wanted is not None:
            return ()
        with _disable_current_modes():
            return tuple(self._tensor(i, x) for i, x in enumerate(tensors(tree)) if _floats(x))

    def _tensor(self, index: int, tensor: torch.Tensor) -> Tensor:
        writers = self._computed_by(tensor)
        if len(writers) == 1:
            (writer,) = writers
            if math.prod(self.operations[writer].shape) == tensor.numel():  # a view of the whole result
                return Tensor(index, writers, tuple(tensor.shape), self.operations[writer].values)
        return Tensor(index, writers, tuple(tensor.shape), Fingerprint.of(to_numpy(tensor)))

    @contextlib.contextmanager
    def hooks(self, model: torch.nn.Module) -> Iterator[None]:
        """Context manager that records which module is running."""
        handles = []
        names = {id(module): name for name, module in model.named_modules()}

        def before(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
            name = names[id(module)]
            self._calls_of[name] = number = self._calls_of.get(name, -1) + 1
            self._open.append(((name, number), self._count, self._described((args, kwargs))))

        def after(module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            key, start, inputs = self._open.pop()
            if self.wanted is None:
                self.calls.append(ModuleCall(key, range(start, self._count), inputs, self._described(output)))

        for module in model.modules():
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(module.register_forward_hook(after, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@dataclasses.dataclass(frozen=True)
class _Call:
    """A call of an operation, with copies of what it was given."""

    func: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def given(self) -> tuple[np.ndarray, ...]:
        return tuple(to_numpy(x) for x in _tensors((self.args, self.kwargs)) if _floats(x))

    def again(self, result: int, index: int, array: np.ndarray) -> np.ndarray:
        """Return the `result`-th of the results, with `array` in place of one of the given tensors."""
        with torch.no_grad():
            args, kwargs = _with(_copied((self.args, self.kwargs)), index, array)
            return to_numpy(_tensors(self.func(*args, **kwargs))[result])


def _copied(tree: Any) -> Any:
    return torch.utils._pytree.tree_map_only(torch.Tensor, torch.Tensor.clone, tree)


def _with(tree: Any, index: int, array: np.ndarray) -> Any:
    """Return a tree of arguments with another array in place of its floating tensor of this index."""
    leaves, spec = torch.utils._pytree.tree_flatten(tree)
    places = [i for i, x in enumerate(leaves) if isinstance(x, torch.Tensor) and _floats(x)]
    old = leaves[places[index]]
    leaves[places[index]] = torch.tensor(array).to(old).reshape(old.shape)
    return torch.utils._pytree.tree_unflatten(leaves, spec)


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [x for x in torch.utils._pytree.tree_leaves(tree) if isinstance(x, torch.Tensor)]


def _floats(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and tensor.numel() > 1


def _storage(tensor: torch.Tensor) -> StorageWeakRef:
    """Return a key of a tensor's storage, which keeps its identity but not its memory."""
    return StorageWeakRef(tensor.untyped_storage())


def _shows_part(tensor: torch.Tensor) -> bool:
    return tensor.numel() < tensor.untyped_storage().nbytes() // tensor.element_size()


def _part(tensor: torch.Tensor) -> tuple[int, int]:
    return int(tensor.storage_offset()), tensor.numel()
