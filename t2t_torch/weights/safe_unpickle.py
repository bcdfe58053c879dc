"""Pickled files, read without running code of theirs and in memory bounded by their size.

PyTorch's files (zip, or the pickles before PyTorch 1.6) go through `torch.load(weights_only=True)`. Plain pickles
(Paddle's `.pdparams`: a dictionary of numpy arrays) go through an unpickler that knows nothing but `ALLOWED`.
"""

from __future__ import annotations

import functools
import io
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from t2t_common.io.pickle_bombs import operations
from t2t_common.io.zips import check_members, open_zip
from t2t_config.text import readable
from t2t_config.weights.digests import DamagedError
from t2t_config.weights.untrusted import ALWAYS
from t2t_torch.weights.ignored_entries import INERT
from t2t_torch.weights.unpickle_preview import check_archive, check_legacy

MAX_EXPANSION = 10
"""torch.save does not compress: a file whose content is this many times its size was made to fill the memory."""

DTYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1")
"""Of the arrays that are read; arrays of others, which may lie beside the weights, stay empty stand-ins."""

ZIP_START, LEGACY_START = b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save, new and old

PADDLE_NAMES = "StructuredToParameterName@@"
"""Where Paddle keeps the names of its variables, beside the weights."""


class Dtype:
    """Stands for `numpy.dtype` in a pickle; `numpy` is None where arrays of it cannot be weights."""

    def __init__(self, code: str, *_: object) -> None:
        self.numpy = np.dtype(code) if code in DTYPES else None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if self.numpy is not None:
            self.numpy = self.numpy.newbyteorder(state[1])


class Array:
    """Stands for `numpy.ndarray` in a pickle: nothing is allocated, the numbers stay in the bytes that were read.

    `numpy` is None where they cannot be weights: texts, dates, unsigned integers of a random generator, ...
    """

    numpy: np.ndarray | None = None

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, data = state
        if dtype.numpy is not None:
            flat = np.frombuffer(data, dtype.numpy) if data else np.empty(0, dtype.numpy)
            self.numpy = flat.reshape(shape, order="F" if is_fortran else "C")


class Namespace:
    """Stands for `argparse.Namespace`: a class of our own, that no file can change for everybody."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def scalar(dtype: Dtype, data: bytes) -> Any:
    """Stands for numpy's reconstruction of a scalar; None where it is no number."""
    if dtype.numpy is None:
        return None
    return np.frombuffer(data, dtype.numpy, count=1)[0].item()


_NUMPY = {
    "numpy.ndarray": Array,
    "numpy.dtype": Dtype,
    **{f"numpy.{core}.multiarray._reconstruct": Array for core in ("core", "_core")},  # before and since numpy 2
    **{f"numpy.{core}.multiarray.scalar": scalar for core in ("core", "_core")},
}

ALLOWED: dict[str, Any] = {"argparse.Namespace": Namespace, **_NUMPY, **INERT}
"""All that a file may call besides what tensors and plain values need: timm keeps its command line (`args`) and
metrics, Paddle its arrays. numpy's own constructors are not called: they allocate whatever they are told."""
STAND_INS = tuple({kind for kind in ALLOWED.values() if isinstance(kind, type)})
"""Classes whose objects may have a state."""


class _Unpickler(pickle._Unpickler):
    """Plain pickles; `budget` is how many characters may be encoded, which protocol 2 does for every array.

    The Python one: its memory of objects is a dictionary, where the C one's is a list of as many places as a file says.
    """

    def __init__(self, file: IO[bytes], budget: int) -> None:
        super().__init__(file)
        self.budget = budget

    stack: list[Any]
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def load_build(self) -> None:
        """As pickle's own, but for stand-ins only: of a class or function, it would set attributes for everybody."""
        if not isinstance(self.stack[-2], STAND_INS):
            raise pickle.UnpicklingError("state of something that has none")
        pickle._Unpickler.dispatch[pickle.BUILD[0]](cast(Any, self))

    dispatch[pickle.BUILD[0]] = load_build

    def find_class(self, module: str, name: str) -> Any:
        full_name = f"{'builtins' if module == '__builtin__' else module}.{name}"
        if full_name == "_codecs.encode":
            return self._encode
        if full_name == "builtins.tuple":
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
                _check_calls(file, start, functools.partial(_check_expansion, path, size=size), size)
                file.seek(0)
                content = _load(path if mapped and start.startswith(ZIP_START) else file)
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
            if "must be imported to load nested" in str(error):  # by PyTorch, which then would read them
                raise ValueError(f"{path} holds nested tensors: save their .to_padded_tensor(0)") from error
            raise ValueError(
                f"{path} is truncated, corrupt or no PyTorch file ({type(error).__name__}): get it again"
            ) from error


class _TooLargeError(Exception):
    pass


def _load(source: Path | IO[bytes]) -> Any:
    """`torch.load`; a path stays mapped."""
    try:
        allowed = torch.serialization.safe_globals([(value, name) for name, value in ALLOWED.items()])
        with allowed, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of kinds of tensors that are refused by name all the same
            return torch.load(source, map_location="cpu", weights_only=True, mmap=isinstance(source, Path))
    finally:  # or the sparse tensors of a file that is refused would be refused again, in the next file
        getattr(torch._utils, "_sparse_tensors_to_validate", []).clear()


def _check_calls(file: IO[bytes], start: bytes, check: Callable[[int], None], size: int) -> None:
    """Raises if `torch.load` would call or allocate what it should not (see dry_run.py)."""
    if start.startswith(ZIP_START):
        with open_zip(file) as archive:
            check_archive(archive, check)
    else:
        check_legacy(file, size, check)


def _check_allocations(file: IO[bytes], budget: int) -> None:
    """Refuses what `torch.load(weights_only=True)` lets a few bytes allocate.

    A bytearray of any size, and one text that is encoded again and again: so all calls times the longest text have to
    be within `budget` (or `ALWAYS`), and every object within `budget` (see `operations`).
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
    if encodes and calls * longest > max(budget, ALWAYS):
        raise pickle.UnpicklingError("one text, encoded many times")


def _pickles(file: IO[bytes]) -> Iterator[tuple[IO[bytes], int]]:
    """The pickles of a file of torch.save, and how many stand one behind the other."""
    if not file.read(len(ZIP_START)).startswith(ZIP_START):
        file.seek(0)
        yield file, 5  # magic number, protocol, system, content, names of storages; then the storages
        return
    with open_zip(file) as archive:
        for info in archive.infolist():
            if info.filename.lower().endswith(".pkl"):
                yield io.BytesIO(archive.read(info)), 1


def has_crc32(path: Path) -> bool:
    """Whether `read_pickle` compares the bytes of the file at `path` with a CRC-32: those of a zip that has them."""
    with path.open("rb") as file:
        if not file.read(len(ZIP_START)).startswith(ZIP_START):
            return False
        with open_zip(file) as archive:
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
        return 0 if content.numpy is None else content.numpy.nbytes
    if isinstance(content, dict) and depth:
        sizes = {id(value): _content_size(value, depth - 1) for value in _apart(content)}
        return sum(sizes[id(value)] for value in content.values())
    return _content_size(content[1], depth) if _is_named_array(content) else 0


def _with_tensors(content: Any, depth: int = 2) -> Any:
    """A state dict, or a dictionary of them, with tensors in place of arrays."""
    if isinstance(content, Array) and content.numpy is not None:
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
