"""Pickled files, read without running code of theirs and in memory bounded by their size.

PyTorch's files (zip, or the pickles before PyTorch 1.6) go through `torch.load(weights_only=True)`. Plain pickles
(Paddle's `.pdparams`: a dictionary of numpy arrays) go through an unpickler that knows nothing but `ALLOWED`.
"""

from __future__ import annotations

import argparse
import io
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from t2t_common.pickles import operations
from t2t_common.zips import check_members
from t2t_config.digests import DamagedError
from t2t_config.load_report import readable

MAX_EXPANSION = 10
"""torch.save does not compress: a file whose content is this many times its size was made to fill the memory."""

DTYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1")

ZIP_START, LEGACY_START = b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save, new and old

PADDLE_NAMES = "StructuredToParameterName@@"
"""Where Paddle keeps the names of its variables, beside the weights."""


class Dtype:
    """Stands for `numpy.dtype` in a pickle: numbers only."""

    def __init__(self, code: str, *_: object) -> None:
        if code not in DTYPES:
            raise pickle.UnpicklingError(f"arrays of {code!r} are not weights")
        self.numpy = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.numpy = self.numpy.newbyteorder(state[1])


class Array:
    """Stands for `numpy.ndarray` in a pickle: nothing is allocated, the numbers stay in the bytes that were read."""

    numpy: np.ndarray

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, data = state
        self.numpy = np.frombuffer(data, dtype.numpy).reshape(shape, order="F" if is_fortran else "C")


def scalar(dtype: Dtype, data: bytes) -> Any:
    """Stands for numpy's reconstruction of a scalar."""
    return np.frombuffer(data, dtype.numpy, count=1)[0].item()


_NUMPY = {
    "numpy.ndarray": Array,
    "numpy.dtype": Dtype,
    **{f"numpy.{core}.multiarray._reconstruct": Array for core in ("core", "_core")},  # before and since numpy 2
    **{f"numpy.{core}.multiarray.scalar": scalar for core in ("core", "_core")},
}

ALLOWED: dict[str, Any] = {"argparse.Namespace": argparse.Namespace, **_NUMPY}
"""All that a file may call besides what tensors and plain values need: timm keeps its command line (`args`) and
metrics, Paddle its arrays. numpy's own constructors are not called: they allocate whatever they are told."""


class _Unpickler(pickle._Unpickler):
    """Plain pickles; `budget` is how many characters may be encoded, which protocol 2 does for every array.

    The Python one: its memory of objects is a dictionary, where the C one's is a list of as many places as a file says.
    """

    def __init__(self, file: IO[bytes], budget: int) -> None:
        super().__init__(file)
        self.budget = budget

    def find_class(self, module: str, name: str) -> Any:
        full_name = f"{module}.{name}"
        if full_name == "_codecs.encode":
            return self._encode
        if full_name in ("builtins.tuple", "__builtin__.tuple"):
            return _pair
        if full_name not in ALLOWED:
            raise pickle.UnpicklingError(f"GLOBAL {full_name}")
        return ALLOWED[full_name]

    def _encode(self, text: str, encoding: str) -> bytes:
        self.budget -= len(text)
        if encoding != "latin1" or self.budget < 0:
            raise pickle.UnpicklingError("these are not arrays")
        return text.encode("latin1")


def _pair(items: Any) -> tuple[Any, ...]:
    """Stands for `tuple`, which Paddle calls for (name, array): anything longer would take more than its bytes."""
    if not isinstance(items, tuple | list) or len(items) != 2:
        raise pickle.UnpicklingError("these are not arrays")
    return tuple(items)


def read_pickle(path: Path, *, mapped: bool = False) -> Any:
    """The content of a pickled file; its arrays as tensors on the CPU.

    Args:
        path: the file.
        mapped: leave the tensors of a file of torch.save where they are, until they are asked for.

    Raises:
        ValueError: the file is truncated or corrupt, would run code, or would fill the memory; one line that names it.
    """
    with path.open("rb") as file:
        start = file.read(len(LEGACY_START))
        file.seek(0)
        size = path.stat().st_size
        try:
            if start.startswith(ZIP_START):
                _check_expansion(path, _unpacked_size(file), size)
                file.seek(0)
                check_members(file, ".pkl" if mapped else "")  # PyTorch's own reader does not
                file.seek(0)
            if start.startswith(ZIP_START) or start == LEGACY_START:
                _check_allocations(file, MAX_EXPANSION * size)
                file.seek(0)
                with torch.serialization.safe_globals([(value, name) for name, value in ALLOWED.items()]):
                    source = path if mapped and start.startswith(ZIP_START) else file
                    content = torch.load(source, map_location="cpu", weights_only=True, mmap=source is path)
            else:
                for _ in operations(file, MAX_EXPANSION * size):
                    pass  # raises where it is cut off: the unpickler would take half a name for a whole one
                file.seek(0)
                content = _Unpickler(file, budget=MAX_EXPANSION * size).load()
            _check_expansion(path, _content_size(content), size)
            return _with_tensors(content)
        except _TooLargeError as error:
            raise ValueError(str(error)) from None
        except DamagedError as error:
            raise ValueError(f"{path} is truncated, corrupt or no PyTorch file ({error}): get it again") from error
        except Exception as error:  # damaged bytes raise nearly anything: KeyError, EOFError, OSError ...
            code = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
            if code:
                raise ValueError(
                    f"{path} would run code when loaded ({readable(code[1])}), so it is refused: only a state_dict is "
                    "read"
                ) from error
            raise ValueError(
                f"{path} is truncated, corrupt or no PyTorch file ({type(error).__name__}): get it again"
            ) from error


class _TooLargeError(Exception):
    pass


def _check_allocations(file: IO[bytes], budget: int) -> None:
    """Refuses what `torch.load(weights_only=True)` lets a few bytes allocate.

    A bytearray of any size, and one text that is encoded again and again: so all calls times the longest text have to
    be within `budget`, and so has every object (see `operations`).
    """
    calls, longest, encodes = 0, 0, False
    for pickled, count in _pickles(file):
        for _ in range(count):
            for name, arg in operations(pickled, budget):
                calls += name in ("REDUCE", "NEWOBJ", "BUILD")
                longest = max(longest, len(arg)) if isinstance(arg, str | bytes) else longest
                if name == "GLOBAL":
                    encodes |= arg == "_codecs encode"
                    if arg in ("builtins bytearray", "__builtin__ bytearray"):
                        raise pickle.UnpicklingError("GLOBAL builtins.bytearray")
    if encodes and calls * longest > budget:
        raise pickle.UnpicklingError("one text, encoded many times")


def _pickles(file: IO[bytes]) -> Iterator[tuple[IO[bytes], int]]:
    """The pickles of a file of torch.save, and how many stand one behind the other."""
    if not file.read(len(ZIP_START)).startswith(ZIP_START):
        file.seek(0)
        yield file, 5  # magic number, protocol, system, content, names of storages; then the storages
        return
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            if name.endswith(".pkl"):
                yield io.BytesIO(archive.read(name)), 1


def has_crc32(path: Path) -> bool:
    """Whether `read_pickle` compares the bytes of the file at `path` with a CRC-32: those of a zip that has them."""
    with path.open("rb") as file:
        if not file.read(len(ZIP_START)).startswith(ZIP_START):
            return False
        with zipfile.ZipFile(file) as archive:
            return any(info.CRC for info in archive.infolist())


def _check_expansion(path: Path, content: int, size: int) -> None:
    if content > MAX_EXPANSION * size:
        raise _TooLargeError(
            f"{path} unpacks to {content:,} bytes from {size:,}, so it is refused: no checkpoint is packed like that"
        )


def _unpacked_size(file: IO[bytes]) -> int:
    with zipfile.ZipFile(file) as archive:
        return sum(info.file_size for info in archive.infolist())


def _content_size(content: Any, depth: int = 2) -> int:
    """Bytes of the tensors and arrays in a state dict or a dictionary of them, views of one memory counted each."""
    if isinstance(content, Tensor):
        return content.numel() * content.element_size()
    if isinstance(content, Array):
        return content.numpy.nbytes
    if isinstance(content, dict) and depth:
        sizes = {id(value): _content_size(value, depth - 1) for value in _apart(content)}
        return sum(sizes[id(value)] for value in content.values())
    return _content_size(content[1], depth) if _is_named_array(content) else 0


def _with_tensors(content: Any, depth: int = 2) -> Any:
    """A state dict, or a dictionary of them, with tensors in place of arrays."""
    if isinstance(content, Array):
        array = content.numpy
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))  # a copy: bytes are read-only
    if isinstance(content, dict) and depth:
        found = {id(value): _with_tensors(value, depth - 1) for value in _apart(content)}
        return {key: found[id(value)] for key, value in content.items() if key != PADDLE_NAMES}
    return _with_tensors(content[1]) if _is_named_array(content) else content


def _apart(content: dict[Any, Any]) -> list[Any]:
    """The values, each once: a dictionary that is there a thousand times is looked through once."""
    return list({id(value): value for value in content.values()}.values())


def _is_named_array(content: Any) -> bool:
    return isinstance(content, tuple) and len(content) == 2 and isinstance(content[1], Array)
