"""Dry run of `torch.load(weights_only=True)`: check a file without allocating memory or creating its objects.

`weights_only=True` allows a small file to allocate a lot of memory (a tensor class called with a size, a copy of an
expanded tensor, the same list converted to a dictionary repeatedly), to refer to one record of its archive by several
names, and to place tensors outside their storage. Here all calls go to stand-ins that only count bytes.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Mapping
from typing import IO, Any, ClassVar

import torch

ENTRY = 8
"""Bytes counted per entry of a copied container."""
WIDEST = 16
"""Bytes of the widest element type, a double-precision complex number."""
STORAGES = {
    **dict.fromkeys(("Double", "Long", "ComplexFloat"), 8),
    **dict.fromkeys(("Float", "Int", "QInt32"), 4),
    **dict.fromkeys(("Half", "BFloat16", "Short"), 2),
    **dict.fromkeys(("Byte", "Char", "Bool", "QInt8", "QUInt8", "QUInt4x2", "QUInt2x4", "Untyped"), 1),
}
"""Storage class, without the suffix `Storage` -> bytes per element."""


def check_archive(archive: zipfile.ZipFile, check: Callable[[int], None]) -> None:
    """Raise an exception of any type if a zip file is unsafe for `torch.load`; `check` raises for too many bytes."""
    members = archive.infolist()
    folder = members[0].filename.partition("/")[0] + "/"  # PyTorch uses the folder of the first member
    records = {info.filename.removeprefix(folder): info.file_size for info in members}
    DryRun(io.BytesIO(archive.read(f"{folder}data.pkl")), check, records).load()


def check_legacy(file: IO[bytes], size: int, check: Callable[[int], None]) -> None:
    """Same as `check_archive` for a file of `size` bytes from before PyTorch 1.6: five pickles, then raw storages."""
    for _ in range(3):  # magic number, protocol, system
        DryRun(file, check, None).load()
    content = DryRun(file, check, None)
    content.load()
    keys = DryRun(file, check, None).load()
    if sorted(keys) != sorted(content.storages) or sum(content.storages.values()) > size:
        raise pickle.UnpicklingError("storages that are not in the file")


class Inert:
    """Stand-in for any class, function or object, on which all operations do nothing."""

    def __call__(self, *args: object) -> Inert:
        return Inert()

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, item: object) -> None:
        pass

    add = extend = append


class _Storage(Inert):
    """Stand-in for a storage of `numel` elements, or for a storage class."""

    def __init__(self, itemsize: int, numel: int = 0) -> None:
        self.itemsize, self.numel = itemsize, numel

    def __call__(self, *args: object) -> Inert:
        raise pickle.UnpicklingError("a storage of any size")


class _Tensor(Inert):
    def __init__(self, numel: int = 0) -> None:
        self.numel = numel


class DryRun(pickle._Unpickler):
    """Unpickler that reads one pickle of a file written by `torch.save` with stand-ins."""

    stack: list[Any]
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: IO[bytes], check: Callable[[int], None], records: Mapping[str, int] | None) -> None:
        """
        Args:
            file: File, positioned at the start of the pickle.
            check: Called with a number of bytes; raises if it is too large.
            records: Size of every record of a zip archive by name; None for files from before PyTorch 1.6.
        """
        super().__init__(file, encoding="utf-8")
        self._check, self._records, self._copied = check, records, 0
        self.storages: dict[Any, int] = {}
        """Bytes of each requested storage, by key."""
        tensor = dict.fromkeys(("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"), self._tensor)
        same = dict.fromkeys(("_rebuild_parameter", "_rebuild_parameter_with_state"), _first)
        copies = dict.fromkeys(("collections.OrderedDict", "collections.Counter", "builtins.set"), self._container)
        self._calls: dict[str, Callable[..., Any]] = {
            **{f"torch._utils.{name}": call for name, call in (tensor | same).items()},
            **copies,
            "torch._utils._rebuild_qtensor": self._quantised,
            "torch._utils._rebuild_device_tensor_from_cpu_tensor": self._copy,
            "torch._tensor._rebuild_from_type_v2": lambda function, kind, args, state: function(*args),
            "torch.nn.parameter.Parameter": _first,
            "torch.Size": lambda sizes=(): tuple(sizes),
            "_codecs.encode": self._encode,
        }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in NAME_MAPPING:
            module, name = NAME_MAPPING[(module, name)]
        module = IMPORT_MAPPING.get(module, module)
        if module == "torch" and isinstance(dtype := vars(torch).get(name), torch.dtype):
            return dtype
        if name.endswith("Storage"):
            return _Storage(STORAGES.get(name.removesuffix("Storage"), WIDEST))
        if name.endswith("Tensor") and module.startswith("torch"):
            return self._sized
        return self._calls.get(f"{module}.{name}") or Inert()

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage, key, _location, numel = pid[:5]
        if kind not in ("storage", b"storage") or not isinstance(storage, _Storage) or not _are_sizes((numel,)):
            raise pickle.UnpicklingError("no storage")
        size = numel * storage.itemsize
        self.storages[key] = max(size, self.storages.get(key, 0))
        if self._records is not None and (type(key) is not str or size > self._records.get(f"data/{key}", -1)):
            raise pickle.UnpicklingError("a storage that is not in the file")
        return _Storage(storage.itemsize, numel)

    def load_newobj(self) -> None:
        args = self.stack.pop()
        self.stack.append(self.stack.pop()(*args))

    def load_build(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], _Tensor) and isinstance(state, tuple) and len(state) == 4:  # before PyTorch 0.4
            self.stack[-1] = self._tensor(*state)

    dispatch[pickle.NEWOBJ[0]] = load_newobj
    dispatch[pickle.BUILD[0]] = load_build

    def _tensor(self, storage: Any, offset: Any, sizes: Any, strides: Any, *rest: Any) -> _Tensor:
        dtype = next((value for value in rest if isinstance(value, torch.dtype)), None)
        if not isinstance(storage, _Storage) or not _are_sizes((offset, *sizes, *strides)):
            raise pickle.UnpicklingError("no tensor")
        itemsize = storage.itemsize if dtype is None else dtype.itemsize
        self._check(math.prod(sizes) * itemsize)
        last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
        if 0 not in sizes and (last + 1) * itemsize > storage.numel * storage.itemsize:
            raise pickle.UnpicklingError("a tensor that exceeds its storage")
        return _Tensor(math.prod(sizes))

    def _quantised(self, storage: Any, offset: Any, sizes: Any, *_: Any) -> _Tensor:
        self._check(math.prod(sizes) * storage.itemsize)
        return _Tensor(math.prod(sizes))

    def _sized(self, *args: Any) -> _Tensor:
        """Count the memory of a tensor whose size is given by the arguments."""
        sizes = [size for arg in args for size in (arg if isinstance(arg, tuple | list) else (arg,))]
        numel = math.prod(size for size in sizes if type(size) is int)
        self._copied += abs(numel) * WIDEST if args else 0
        self._check(self._copied)
        return _Tensor(numel if args else 0)

    def _copy(self, tensor: Any, *_: Any) -> _Tensor:
        return self._sized(tensor.numel)

    def _container(self, *args: Any) -> Inert:
        self._copied += sum(ENTRY * len(arg) for arg in args if hasattr(arg, "__len__"))
        self._check(self._copied)
        return Inert()

    def _encode(self, text: str, encoding: str) -> bytes:
        self._copied += len(text)
        self._check(self._copied)
        if encoding != "latin1":
            raise pickle.UnpicklingError("bytes that pickle does not write")
        return text.encode("latin1")


def _first(value: Any = None, *_: Any) -> Any:
    return value


def _are_sizes(values: tuple[Any, ...]) -> bool:
    return all(type(value) is int and value >= 0 for value in values)
