"""Atomic writes to PyTorch tensors, including tensors that share memory.

Several tensors may share memory: tied ones, views with other offsets or strides, buffers repeated by `expand`.
All new values are first written to a copy of that memory. Only if every tensor can then be read back from the copy
is anything changed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from parity.carry.arrays import converted, dtype_name, first_line, is_integer, numpy_dtype, to_numpy, to_tensor


def unreadable(tensor: torch.Tensor) -> str | None:
    """Return why a tensor's values cannot be read, with advice; None if they can."""
    if torch.nn.parameter.is_lazy(tensor):
        return "is not initialised (a lazy module): run the model once on an input first"
    if is_traceable_wrapper_subclass(tensor):
        return f"is a {type(tensor).__name__}, whose numbers lie elsewhere: replace it by a plain tensor first"
    if tensor.is_quantized:
        return "is quantised: call .dequantize() on it first"
    if tensor.layout != torch.strided:
        name = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.").replace("_", " ")
        return f"is {name}, not dense: call .to_dense() (of a nested one .to_padded_tensor()) first"
    if tensor.is_nested:
        return "is nested: call .to_padded_tensor() on it first"
    if tensor.device.type == "meta":
        return "is on the device meta, without memory: model.to_empty(device='cpu') or load its weights first"
    return None


def unwritable(tensor: torch.Tensor, read_only: Sequence[tuple[int, int]] = ()) -> str | None:
    """Return why a tensor cannot be written, with advice; None if it can. `read_only` lists ranges of addresses."""
    found = unreadable(tensor)
    if found is None and tensor.is_inference() and not torch.is_inference_mode_enabled():
        return "is an inference tensor: make the model outside of torch.inference_mode()"
    if found is None and tensor.device.type == "cpu" and tensor.numel():
        address = tensor.data_ptr()
        if any(start <= address < end for start, end in read_only):
            return "lies in memory that may only be read (a file mapped with mode 'r'): clone it first"
    return found


def _read_only_memory() -> list[tuple[int, int]]:
    """Return the address ranges that this process may not write: PyTorch does not check, and writing would crash."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as lines:
            fields = [line.split(maxsplit=2)[:2] for line in lines]
    except OSError:  # not Linux
        return []
    ranges = (([int(x, 16) for x in place.split("-")], rights) for place, rights in fields)
    return [(start, end) for (start, end), rights in ranges if rights[1] != "w"]


def write(tensors: Mapping[str, torch.Tensor], arrays: Mapping[str, np.ndarray], *, cast: bool = False) -> None:
    """Write new values to tensors, in place.

    Args:
        tensors: All tensors by name that may share memory with those that are written.
        arrays: New values by name. A tensor takes the dtype of its array; with `cast`, and for integers that fit, it
            keeps its own.

    Raises:
        ValueError: Some tensors cannot be written, or two names of the same memory have different values there; all
            are listed, and nothing is changed.
    """
    read_only = _read_only_memory()
    problems = [f"{name} {text}" for name in arrays if (text := unwritable(tensors[name], read_only))]
    raise_problems(problems)
    values = _values(tensors, arrays, cast=cast)
    writes: list[_Write] = []
    for members in _sharing(tensors, values):
        writes += _group_writes(members, problems)
    raise_problems(problems)
    _commit(writes)


def raise_problems(problems: Sequence[str]) -> None:
    if problems:
        raise ValueError(f"{len(problems)} tensors cannot be carried over: " + "; ".join(problems))


def _values(
    tensors: Mapping[str, torch.Tensor], arrays: Mapping[str, np.ndarray], *, cast: bool
) -> dict[str, torch.Tensor]:
    """Return the new value of each tensor, in its new dtype."""
    found, problems = {}, []
    for name, array in arrays.items():
        try:
            found[name] = to_tensor(_in_dtype(array, tensors[name], cast=cast))
        except ValueError as error:
            problems.append(f"{name}: {error}" + ("" if cast else ": pass cast=True to keep PyTorch's own dtype"))
    raise_problems(problems)
    return found


def _in_dtype(array: np.ndarray, target: torch.Tensor, *, cast: bool) -> np.ndarray:
    own = numpy_dtype(target)
    if cast:
        return converted(array, own)
    if is_integer(own) and is_integer(array.dtype) and own.itemsize > array.itemsize:
        try:
            return converted(array, own)  # JAX stores 64-bit integers in 32 bits, PyTorch's indices are int64
        except ValueError:
            return array
    return array


@dataclasses.dataclass(frozen=True)
class _Member:
    """A tensor in some memory, with lazy conjugation and negation removed, and its new value."""

    name: str
    tensor: torch.Tensor
    value: torch.Tensor | None
    owner: torch.Tensor

    @classmethod
    def of(cls, name: str, tensor: torch.Tensor, value: torch.Tensor | None) -> _Member:
        raw = tensor.detach()
        if raw.is_conj():
            raw, value = raw.conj(), None if value is None else value.conj().resolve_conj()
        if raw.is_neg():
            raw, value = torch._neg_view(raw), None if value is None else value.neg()
        return cls(name, raw, value, tensor)

    @property
    def start(self) -> int:
        return self.tensor.data_ptr()

    @property
    def span(self) -> int:
        """Number of elements from the first to the last, including gaps."""
        steps = zip(self.tensor.shape, self.tensor.stride(), strict=True)
        return 1 + sum((size - 1) * stride for size, stride in steps)

    @property
    def end(self) -> int:
        return self.start + self.span * self.tensor.element_size()

    @property
    def place(self) -> tuple[object, ...]:
        """Key of the memory layout; tensors with the same key are tied."""
        return self.start, self.tensor.shape, self.tensor.stride(), self.tensor.dtype

    @property
    def repeats(self) -> bool:
        """Whether two elements may share the same memory location."""
        reach = 0
        for stride, size in sorted((s, n) for n, s in zip(self.tensor.shape, self.tensor.stride(), strict=True)):
            if size > 1 and stride <= reach:
                return True
            reach += (size - 1) * stride
        return False

    @property
    def changes_dtype(self) -> bool:
        return self.value is not None and self.value.dtype != self.tensor.dtype

    def within(self, memory: np.ndarray, start: int) -> np.ndarray:
        """Return its bytes in a copy of the memory from `start` on, with an extra axis for the bytes of an element."""
        size = self.tensor.element_size()
        strides = (*(stride * size for stride in self.tensor.stride()), 1)
        return np.ndarray((*self.tensor.shape, size), np.uint8, memory, self.start - start, strides)

    def bytes(self) -> np.ndarray:
        assert self.value is not None
        array = to_numpy(self.value)
        return array.reshape(-1).view(np.uint8).reshape(*array.shape, array.itemsize)


def _sharing(tensors: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> Iterator[list[_Member]]:
    """Yield groups of tensors whose memory ranges overlap; a tensor that shares none is a group of one."""
    members = []
    for name, tensor in tensors.items():
        if name in values:
            members.append(_Member.of(name, tensor, values[name]))
        elif unreadable(tensor) is None:
            members.append(_Member.of(name, tensor, None))
    group: list[_Member] = []
    device, end = None, -1
    for member in sorted(members, key=lambda m: (str(m.tensor.device), m.start)):
        if not member.tensor.numel():
            yield [member]
            continue
        if group and (member.tensor.device != device or member.start >= end):
            yield group
            group, end = [], -1
        group.append(member)
        device, end = member.tensor.device, max(end, member.end)
    if group:
        yield group


def _group_writes(members: list[_Member], problems: list[str]) -> list[_Write]:
    """Return the writes that update the memory of a group; conflicts are added to `problems`."""
    active = [member for member in members if member.value is not None]
    if any(member.changes_dtype for member in active):
        return _new_memory(members, active, problems)
    if len(active) < 2 and not any(member.repeats for member in active):
        return [_Write(member.name, member.tensor, _held(member)) for member in active]
    start = min(member.start for member in active)
    memory = np.zeros(max(member.end for member in active) - start, np.uint8)
    for member in active:
        member.within(memory, start)[...] = member.bytes()
    found = [
        _difference(member, active, start, memory.size)
        for member in active
        if not np.array_equal(member.within(memory, start), member.bytes())
    ]
    problems += found
    if found:
        return []
    return [_Write(member.name, *_once(member, memory, start)) for member in active]


def _held(member: _Member) -> torch.Tensor:
    assert member.value is not None
    return member.value


def _once(member: _Member, memory: np.ndarray, start: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the target and value of a write that writes each memory location only once."""
    value = _held(member)
    if not member.repeats:
        return member.tensor, value
    # Memory between the tensor's elements keeps its content: it is read and written back.
    flat = member.tensor.as_strided((member.span,), (1,))
    content = np.ascontiguousarray(to_numpy(flat))
    raw = content.view(np.uint8)
    size = value.element_size()
    shape, strides = (*value.shape, size), (*(stride * size for stride in member.tensor.stride()), 1)
    raw = raw.copy()
    np.ndarray(shape, np.uint8, raw, 0, strides)[...] = member.bytes()
    return flat, to_tensor(raw.view(content.dtype))


def _difference(member: _Member, active: Sequence[_Member], start: int, size: int) -> str:
    """Return a message naming the tensor whose values conflict with those of `member`."""
    for other in active:
        if other is member:
            continue
        memory = np.zeros(size, np.uint8)
        member.within(memory, start)[...] = member.bytes()
        other.within(memory, start)[...] = other.bytes()
        if not np.array_equal(member.within(memory, start), member.bytes()):
            first, second = sorted((member.name, other.name), key=[m.name for m in active].index)
            if member.place == other.place:
                return f"{first} and {second} are one tensor in PyTorch and differ in JAX: untie or average them"
            return (
                f"{first} and {second} share memory in PyTorch and differ in JAX where they do: give one of them a "
                "memory of its own (.clone()), or make them agree"
            )
    return (
        f"{member.name} repeats numbers of its memory in PyTorch (as .expand() does) that differ in JAX: .clone() it "
        "in PyTorch, or make them agree"
    )


def _new_memory(members: Sequence[_Member], active: Sequence[_Member], problems: list[str]) -> list[_Write]:
    """Return the writes that replace the memory by one of another dtype, for a tensor with one or several names."""
    first = active[0]
    names = " and ".join(member.name for member in members[:3])
    if len({member.place for member in members}) > 1:
        dtypes = ", ".join(sorted({dtype_name(member.value) for member in active}))
        problems.append(
            f"{names} share memory in PyTorch, as {dtype_name(first.tensor)}, and would become {dtypes}: pass "
            "cast=True, or convert the model first"
        )
    elif len({dtype_name(member.value) for member in active}) > 1:
        problems.append(f"{names} are one tensor in PyTorch and differ in JAX, in dtype: untie them, or pass cast=True")
    elif any(not np.array_equal(member.bytes(), first.bytes()) for member in active):
        problems.append(f"{names} are one tensor in PyTorch and differ in JAX: untie or average them")
    elif first.owner.is_conj() or first.owner.is_neg():
        problems.append(f"{names} is a conjugated or negated view of another dtype: pass cast=True, or clone it first")
    else:
        value = _held(first).to(first.tensor.device)
        return [_Write(member.name, member.owner, value, replaces=True) for member in members]
    return []


@dataclasses.dataclass(frozen=True)
class _Write:
    """One write: the values of `value` are copied to `target`, or (`replaces`) its memory becomes the target's."""

    name: str
    target: torch.Tensor
    value: torch.Tensor
    replaces: bool = False

    def saved(self) -> torch.Tensor:
        """Return the current content of the target."""
        return self.target.data if self.replaces else self.target.detach().to("cpu", copy=True)

    def apply(self, value: torch.Tensor) -> None:
        if self.replaces:
            self.target.data = value
        else:
            self.target.copy_(value)


def _commit(writes: Sequence[_Write]) -> None:
    """Apply all writes; if one fails, undo the earlier ones."""
    done: list[tuple[_Write, torch.Tensor]] = []
    with torch.no_grad():
        try:
            for step in writes:
                done.append((step, step.saved()))
                step.apply(step.value)
        except BaseException as error:
            for earlier, saved in reversed(done):
                earlier.apply(saved)
            if isinstance(error, Exception):
                raise ValueError(
                    f"{writes[len(done) - 1].name} cannot be written ({first_line(error)}): nothing was changed"
                ) from error
            raise
