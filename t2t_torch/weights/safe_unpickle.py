"""Read pickled files without running their code, and with memory bounded by their size.

PyTorch files (zip, or pickles from before PyTorch 1.6) are read by `torch.load(weights_only=True)`. Plain pickles
(Paddle's `.pdparams`: a dictionary of NumPy arrays) are read by an unpickler restricted to `ALLOWED`.
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
from typing import IO, Any

import torch
from torch import Tensor

from t2t_common.io.array_pickle import NUMPY, Array, ArrayUnpickler
from t2t_common.io.pickle_bombs import operations
from t2t_common.io.zips import check_members, open_zip
from t2t_config.text import readable
from t2t_config.weights.digests import DamagedError
from t2t_config.weights.untrusted import ALWAYS
from t2t_torch.weights.ignored_entries import INERT
from t2t_torch.weights.unpickle_preview import check_archive, check_legacy

MAX_EXPANSION = 10
"""Maximum ratio of content to file size. torch.save does not compress, so a larger ratio indicates a zip bomb."""

ZIP_START, LEGACY_START = b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save, new and old

PADDLE_NAMES = "StructuredToParameterName@@"
"""Entry in which Paddle stores its variable names, next to the weights."""


class Namespace:
    """Stand-in for `argparse.Namespace`, so that a file cannot modify the global class."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


ALLOWED: dict[str, Any] = {"argparse.Namespace": Namespace, **NUMPY, **INERT}
"""Everything that a file may call apart from tensors and plain values: timm stores its command line (`args`) and
metrics, Paddle its arrays."""


def _pair(items: Any) -> tuple[Any, ...]:
    """Stand-in for `tuple`, which Paddle calls for (name, array); a longer one may need more memory than its file."""
    if not isinstance(items, tuple | list) or len(items) != 2:
        raise pickle.UnpicklingError("these are not arrays")
    return tuple(items)


class _Unpickler(ArrayUnpickler):
    """Unpickler for plain pickles."""

    allowed = {**ALLOWED, "builtins.tuple": _pair}  # noqa: RUF012


def read_pickle(path: Path, *, mapped: bool = False) -> Any:
    """Return the content of a pickled file, with its arrays as tensors on the CPU.

    Args:
        path: File to read.
        mapped: Whether to memory-map the tensors of a file written by `torch.save`.

    Raises:
        ValueError: The file is truncated or corrupt, would run code, or would exhaust memory; the message is one line
            that names the file.
    """
    with path.open("rb") as file:
        start = file.read(len(LEGACY_START))
        file.seek(0)
        size = path.stat().st_size
        try:
            if start.startswith(ZIP_START):
                _check_expansion(path, _unpacked_size(file), size)
                file.seek(0)
                check_members(file, ".pkl" if mapped else "")  # PyTorch's reader does not check them
                file.seek(0)
            if start.startswith(ZIP_START) or start == LEGACY_START:
                _check_allocations(file, MAX_EXPANSION * size)
                file.seek(0)
                _check_calls(file, start, functools.partial(_check_expansion, path, size=size), size)
                file.seek(0)
                content = _load(path if mapped and start.startswith(ZIP_START) else file)
            else:
                for _ in operations(file, MAX_EXPANSION * size):
                    pass  # raises for a truncated file, where the unpickler would accept a truncated name
                file.seek(0)
                content = _Unpickler(file, budget=MAX_EXPANSION * size).load()
            _check_expansion(path, _content_size(content), size)
            return _with_tensors(content)
        except _TooLargeError as error:
            raise ValueError(str(error)) from None
        except DamagedError as error:
            raise ValueError(
                f"{path} is truncated, corrupt or not a PyTorch file ({error}): get another copy"
            ) from error
        except Exception as error:  # damaged bytes raise almost anything: KeyError, EOFError, OSError ...
            code = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
            if code:
                raise ValueError(
                    f"{path} would run code when loaded ({readable(code[1])}), so it is refused: only a state_dict is "
                    "read"
                ) from error
            if "must be imported to load nested" in str(error):  # raised by PyTorch for nested tensors
                raise ValueError(f"{path} holds nested tensors: save their .to_padded_tensor(0)") from error
            raise ValueError(
                f"{path} is truncated, corrupt or not a PyTorch file ({type(error).__name__}): get another copy"
            ) from error


class _TooLargeError(Exception):
    pass


def _load(source: Path | IO[bytes]) -> Any:
    """Call `torch.load`; a path is memory-mapped."""
    try:
        allowed = torch.serialization.safe_globals([(value, name) for name, value in ALLOWED.items()])
        with allowed, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about kinds of tensors that are refused later, by name
            return torch.load(source, map_location="cpu", weights_only=True, mmap=isinstance(source, Path))
    finally:  # otherwise the sparse tensors of a refused file would be validated again with the next file
        getattr(torch._utils, "_sparse_tensors_to_validate", []).clear()


def _check_calls(file: IO[bytes], start: bytes, check: Callable[[int], None], size: int) -> None:
    """Raise an exception if `torch.load` would make unsafe calls or allocations (see unpickle_preview.py)."""
    if start.startswith(ZIP_START):
        with open_zip(file) as archive:
            check_archive(archive, check)
    else:
        check_legacy(file, size, check)


def _check_allocations(file: IO[bytes], budget: int) -> None:
    """Refuse allocations that `torch.load(weights_only=True)` permits to a small file.

    These are a bytearray of any size, and one string that is encoded repeatedly. Therefore the number of calls times
    the longest string must be within `budget` (or `ALWAYS`), and every object within `budget` (see `operations`).
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
    """Yield the pickle streams of a file written by `torch.save`, with the number of consecutive pickles in each."""
    if not file.read(len(ZIP_START)).startswith(ZIP_START):
        file.seek(0)
        yield file, 5  # magic number, protocol, system, content, storage keys; then the storages
        return
    with open_zip(file) as archive:
        for info in archive.infolist():
            if info.filename.lower().endswith(".pkl"):
                yield io.BytesIO(archive.read(info)), 1


def has_crc32(path: Path) -> bool:
    """Return whether `read_pickle` verifies the file at `path` with CRC-32, i.e. it is a zip file that has them."""
    with path.open("rb") as file:
        if not file.read(len(ZIP_START)).startswith(ZIP_START):
            return False
        with open_zip(file) as archive:
            return any(info.CRC for info in archive.infolist())


def _check_expansion(path: Path, content: int, size: int) -> None:
    if content > MAX_EXPANSION * size:
        raise _TooLargeError(
            f"{path} unpacks to {content:,} bytes from {size:,}, so it is refused: no checkpoint compresses that well"
        )


def _unpacked_size(file: IO[bytes]) -> int:
    with zipfile.ZipFile(file) as archive:
        return sum(info.file_size for info in archive.infolist())


def _content_size(content: Any, depth: int = 2) -> int:
    """Return the bytes of all tensors and arrays in a state dict or a dictionary of them; shared views all count."""
    if isinstance(content, Tensor):
        return content.numel() * content.element_size()
    if isinstance(content, Array):
        return 0 if content.numpy is None else content.numpy.nbytes
    if isinstance(content, dict) and depth:
        sizes = {id(value): _content_size(value, depth - 1) for value in _distinct(content)}
        return sum(sizes[id(value)] for value in content.values())
    return _content_size(content[1], depth) if _is_named_array(content) else 0


def _with_tensors(content: Any, depth: int = 2) -> Any:
    """Convert the arrays in a state dict, or in a dictionary of them, to tensors."""
    if isinstance(content, Array) and content.numpy is not None:
        array = content.numpy
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))  # a copy: bytes are read-only
    if isinstance(content, dict) and depth:
        found = {id(value): _with_tensors(value, depth - 1) for value in _distinct(content)}
        return {key: found[id(value)] for key, value in content.items() if key != PADDLE_NAMES}
    return _with_tensors(content[1]) if _is_named_array(content) else content


def _distinct(content: dict[Any, Any]) -> list[Any]:
    """Return the values without duplicates (by identity), so that a repeated dictionary is processed only once."""
    return list({id(value): value for value in content.values()}.values())


def _is_named_array(content: Any) -> bool:
    return isinstance(content, tuple) and len(content) == 2 and isinstance(content[1], Array)
