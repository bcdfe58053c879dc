"""Reader for a tensor in a `torch.save` file, without PyTorch and without executing code from the file.

Format: an uncompressed zip archive with a pickle (`*/data.pkl`) that describes the tensor, and the bytes of each
storage (`*/data/KEY`), little-endian. The unpickler supports nothing but a single tensor.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from t2t_common.io.pickle_bombs import operations
from t2t_common.io.zips import open_zip
from t2t_config.text import readable

MAX_PLACES = 1000
"""Maximum number of objects in the pickle, counted once per use; about twenty are usual."""

DTYPES = {
    **{"DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2"},
    **{"LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "ByteStorage": "u1"},
}
"""PyTorch storage class -> NumPy dtype."""


def read_tensor(path: Path) -> np.ndarray:
    """Read the tensor as an array.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is not a `torch.save` file (since PyTorch 1.6), is damaged, or contains anything but one
            tensor; the message does not name the file.
    """
    try:
        with open_zip(path) as archive:
            members = {name.partition("/")[2]: name for name in archive.namelist()}
            if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                raise ValueError("it is compressed, which torch.save never does")
            if "byteorder" in members and archive.read(members["byteorder"]) != b"little":
                raise ValueError("its numbers are big-endian")
            pickled = io.BytesIO(archive.read(members["data.pkl"]))
            for _ in operations(pickled, MAX_PLACES):
                pass  # raises if it is truncated or expands far beyond its size
            pickled.seek(0)
            found = _Unpickler(pickled, archive, members).load()
    except FileNotFoundError:
        raise
    except Exception as error:  # damaged bytes raise nearly any error: KeyError, EOFError, BadZipFile ...
        raise ValueError(readable(str(error), 200) or type(error).__name__) from error
    if not isinstance(found, np.ndarray):
        raise ValueError(f"it holds a {type(found).__name__}, not one tensor")
    return found.copy()


class _Unpickler(pickle._Unpickler):
    """Pure-Python unpickler: its memo is a dictionary, while a file determines the size of the C unpickler's memo."""

    def __init__(self, file: io.BytesIO, archive: zipfile.ZipFile, members: dict[str, str]) -> None:
        super().__init__(file)
        self._archive, self._members, self._read = archive, members, False

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if (module, name) == ("collections", "OrderedDict"):  # backward hooks, always empty
            return OrderedDict
        raise pickle.UnpicklingError(f"it would call {module}.{name}")

    def persistent_load(self, pid: Any) -> np.ndarray:
        _, dtype, key, _, _ = pid
        if self._read:  # repeated reads would let a small file exhaust the memory
            raise pickle.UnpicklingError("it contains several tensors")
        self._read = True
        return np.frombuffer(self._archive.read(self._members[f"data/{key}"]), dtype)


def _rebuild(storage: np.ndarray, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> np.ndarray:
    """Return the part of `storage` that a tensor shows; `strides` are in elements, not bytes."""
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if min((offset, *shape, *strides)) < 0 or 0 in shape or last >= len(storage) or math.prod(shape) > len(storage):
        raise pickle.UnpicklingError("its tensor exceeds its storage")
    steps = tuple(stride * storage.itemsize for stride in strides)
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False)
