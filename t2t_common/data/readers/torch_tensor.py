"""A tensor in a file of `torch.save`, read without PyTorch and without running code of the file.

Format: a zip archive, not compressed, with a pickle (`*/data.pkl`) that says which tensor it is, and the bytes of each
storage (`*/data/KEY`), little-endian. The pickle is read by an unpickler that knows nothing but that one tensor.
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
"""Of the pickle that says which tensor it is; some twenty are usual."""

DTYPES = {
    **{"DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2"},
    **{"LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "ByteStorage": "u1"},
}
"""PyTorch's name of a storage -> numpy's of its numbers."""


def read_tensor(path: Path) -> np.ndarray:
    """The tensor, as an array.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no file of `torch.save` (since PyTorch 1.6), damaged, or something else than one tensor in it; the
            message does not name the file.
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
                pass  # raises where it is cut off, or far larger than it looks
            pickled.seek(0)
            found = _Unpickler(pickled, archive, members).load()
    except FileNotFoundError:
        raise
    except Exception as error:  # damaged bytes raise nearly anything: KeyError, EOFError, BadZipFile ...
        raise ValueError(readable(str(error), 200) or type(error).__name__) from error
    if not isinstance(found, np.ndarray):
        raise ValueError(f"it holds a {type(found).__name__}, not one tensor")
    return found.copy()


class _Unpickler(pickle._Unpickler):
    """The Python one: its memory of objects is a dictionary, where the C one's is as long as a file says."""

    def __init__(self, file: io.BytesIO, archive: zipfile.ZipFile, members: dict[str, str]) -> None:
        super().__init__(file)
        self._archive, self._members, self._read = archive, members, False

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if (module, name) == ("collections", "OrderedDict"):  # of hooks, always empty
            return OrderedDict
        raise pickle.UnpicklingError(f"it would call {module}.{name}")

    def persistent_load(self, pid: Any) -> np.ndarray:
        _, dtype, key, _, _ = pid
        if self._read:  # again and again, a small file would fill the memory
            raise pickle.UnpicklingError("it has several tensors")
        self._read = True
        return np.frombuffer(self._archive.read(self._members[f"data/{key}"]), dtype)


def _rebuild(storage: np.ndarray, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> np.ndarray:
    """The part of `storage` that a tensor shows; `strides` count numbers, not bytes."""
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if min((offset, *shape, *strides)) < 0 or 0 in shape or last >= len(storage) or math.prod(shape) > len(storage):
        raise pickle.UnpicklingError("its tensor does not lie in its storage")
    steps = tuple(stride * storage.itemsize for stride in strides)
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False)
