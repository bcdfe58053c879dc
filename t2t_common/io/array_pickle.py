"""Unpickling of dictionaries of NumPy arrays and plain values, without running code from the file.

NumPy's own constructors are not called, because they allocate any requested size: stand-ins take their place.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, ClassVar, cast

import numpy as np

from t2t_common.io.pickle_bombs import operations
from t2t_config.text import reason

MOST_BYTES = 1 << 30
"""Maximum size of a file in bytes; CIFAR-100's has 155 million."""
MOST_PLACES = 1 << 22
"""Maximum number of elements of an object, counted once per use; CIFAR-100's has 150,000."""

DTYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1")
"""Dtypes of arrays that are read; arrays of other dtypes, which may be next to the weights, become empty stand-ins."""


class Dtype:
    """Stand-in for `numpy.dtype` in a pickle; `numpy` is None for a dtype that weights cannot have."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        name = _latin1(code)
        self.numpy = np.dtype(name) if name in DTYPES else None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if self.numpy is not None:
            self.numpy = self.numpy.newbyteorder(_latin1(state[1]))


class Array:
    """Stand-in for `numpy.ndarray` in a pickle: allocates nothing, the data stays in the bytes that were read.

    `numpy` is None for data that cannot be weights: strings, dates, unsigned integers of a random generator, ...
    """

    numpy: np.ndarray | None = None

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, data = state
        if dtype.numpy is not None:
            flat = np.frombuffer(data, dtype.numpy) if data else np.empty(0, dtype.numpy)
            self.numpy = flat.reshape(shape, order="F" if is_fortran else "C")


def scalar(dtype: Dtype, data: bytes) -> Any:
    """Stand-in for NumPy's reconstruction of a scalar; None if it is not a number."""
    if dtype.numpy is None:
        return None
    return np.frombuffer(data, dtype.numpy, count=1)[0].item()


NUMPY: Mapping[str, Any] = {
    "numpy.ndarray": Array,
    "numpy.dtype": Dtype,
    **{f"numpy.{core}.multiarray._reconstruct": Array for core in ("core", "_core")},  # before and since numpy 2
    **{f"numpy.{core}.multiarray.scalar": scalar for core in ("core", "_core")},
}
"""Stand-ins for what NumPy writes into a pickle."""


class ArrayUnpickler(pickle._Unpickler):
    """Unpickler that calls only `allowed`. `budget` limits the characters to encode, which protocol 2 does for every
    array.

    Based on the Python implementation, whose memo is a dictionary; the memo of the C implementation is a list of a
    length chosen by the file.
    """

    allowed: ClassVar[Mapping[str, Any]] = NUMPY
    stack: list[Any]
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: IO[bytes], budget: int, *, encoding: str = "ASCII") -> None:
        super().__init__(file, encoding=encoding)
        self.budget = budget

    def load_build(self) -> None:
        """pickle's own method, restricted to stand-ins: for a class or function, it would set attributes globally."""
        if type(self.stack[-2]) not in self.allowed.values():
            raise pickle.UnpicklingError("state of something that has none")
        pickle._Unpickler.dispatch[pickle.BUILD[0]](cast(Any, self))

    dispatch[pickle.BUILD[0]] = load_build

    def find_class(self, module: str, name: str) -> Any:
        full_name = f"{'builtins' if module == '__builtin__' else module}.{name}"
        if full_name == "_codecs.encode":
            return self._encode
        if full_name not in self.allowed:
            raise pickle.UnpicklingError(f"GLOBAL {full_name}")
        return self.allowed[full_name]

    def _encode(self, text: str, encoding: str) -> bytes:
        self.budget -= len(text)
        if encoding not in ("latin1", b"latin1") or self.budget < 0:
            raise pickle.UnpicklingError("these are not arrays")
        return text.encode("latin1")


def read_arrays(path: Path) -> dict[str, Any]:
    """Read a pickled dictionary of arrays and plain values, as written by Python 2 or 3.

    Returns:
        Values by name; arrays as NumPy arrays, text of Python 2 as bytes.

    Raises:
        ValueError: If the file is damaged, would run code or would exhaust memory; the message is one line that names
            the file.
    """
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise ValueError(f"it has {size:,} bytes, more than {MOST_BYTES:,}")
        with path.open("rb") as file:
            for _ in operations(file, MOST_PLACES):
                pass  # raises if it is truncated or expands far beyond its size
            file.seek(0)
            found = ArrayUnpickler(file, size, encoding="bytes").load()
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}, no dictionary")
        return {_text(name): value.numpy if isinstance(value, Array) else value for name, value in found.items()}
    except Exception as error:  # damaged bytes raise almost anything: KeyError, EOFError ...
        what = reason(error)
        if isinstance(error, pickle.UnpicklingError) and what.startswith("GLOBAL "):
            raise ValueError(f"{path} would run code when loaded ({what[7:]}), so it is refused") from error
        raise ValueError(f"cannot read {path} ({what}): get another copy") from error


def _latin1(text: Any) -> Any:
    """Return text, which Python 2 pickles as bytes, as a string; anything else unchanged."""
    return text.decode("latin1") if isinstance(text, bytes) else text


def _text(name: Any) -> str:
    return name.decode("utf-8") if isinstance(name, bytes) else str(name)
