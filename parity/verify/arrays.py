"""Named arrays: those of a model's output, and files that are safe to read whoever has written them.

A file has 8 bytes with the length of its header, a header in JSON, and the plain numbers. Nothing in it is run or
unpickled, and nothing is allocated before its size is known to agree with that of the file.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

DTYPES = {
    name: np.dtype(name)
    for name in (
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64", "complex64", "complex128"),
    )
} | {"bfloat16": np.dtype(ml_dtypes.bfloat16)}
"""The types that a file can hold."""

HEADER = 8 * 2**20
"""The longest header that is read, in bytes."""


class DamagedError(ValueError):
    """A file that `write` has not written."""


def write(file: BinaryIO, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write `meta` (JSON) and the arrays.

    Raises:
        ValueError: An array has a type that a file cannot hold.
    """
    held = {name: np.asarray(array) for name, array in arrays.items()}
    for name, array in held.items():
        if str(array.dtype) not in DTYPES:
            raise ValueError(f"{name} holds {array.dtype}, not one of {', '.join(DTYPES)}")
    entries = [[name, str(array.dtype), list(array.shape)] for name, array in held.items()]
    header = json.dumps({"meta": meta, "arrays": entries}).encode()
    file.write(len(header).to_bytes(8, "little") + header)
    for array in held.values():
        file.write(array.tobytes())


def read(file: BinaryIO) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return what `write` has written.

    Raises:
        DamagedError: The file is something else.
    """
    length = int.from_bytes(file.read(8), "little")
    end = file.seek(0, 2)
    if not 0 < length <= min(HEADER, end - 8):
        raise DamagedError("the header has no sensible length")
    file.seek(8)
    try:
        header = json.loads(file.read(length))
        meta = header["meta"]
        entries = [(str(name), DTYPES[dtype], _shape(shape)) for name, dtype, shape in header["arrays"]]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise DamagedError("the header is no list of arrays") from error
    if not isinstance(meta, dict) or sum(math.prod(shape) * dtype.itemsize for _, dtype, shape in entries) != (
        end - 8 - length
    ):
        raise DamagedError("the file has another length than its arrays")
    found = {}
    for name, dtype, shape in entries:
        data = file.read(math.prod(shape) * dtype.itemsize)
        found[name] = np.frombuffer(bytearray(data), dtype).reshape(shape)
    return meta, found


def _shape(value: Any) -> tuple[int, ...]:
    shape = tuple(value)
    if len(shape) > 32 or not all(type(size) is int and 0 <= size < 2**40 for size in shape):
        raise ValueError("no shape")
    return shape


def named(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (name, tensor) for each tensor of an output: "" for a single one, else "logits", "states[0]" and so on.

    Mappings, named tuples and dataclasses are ordered by the names of their items; None and numbers are left out.
    """
    if isinstance(tree, Mapping):
        items = {str(key): value for key, value in tree.items()}
    elif hasattr(tree, "_asdict"):
        items = tree._asdict()
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type) and not hasattr(tree, "dtype"):
        items = {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree)}
    elif isinstance(tree, tuple | list):
        for i, value in enumerate(tree):
            yield from named(value, f"{name}[{i}]")
        return
    else:
        if hasattr(tree, "shape") and hasattr(tree, "dtype"):
            yield name, tree
        return
    for key in sorted(items):
        yield from named(items[key], f"{name}.{key}" if name else key)
