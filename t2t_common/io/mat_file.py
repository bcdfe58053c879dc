"""Reading of structs from MATLAB's MAT-files of level 5, as far as text and single numbers in them.

Format (MathWorks, "MAT-File Format"): after a header of 128 bytes, elements with a tag, type and size, and their data,
padded to 8 bytes; small data are in the tag itself. An element may be compressed by zlib. An array (MATRIX) consists of
elements: flags with its class, dimensions, name, and then its fields or data. Nothing is allocated by the sizes that a
file claims.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

HEADER = 128
MOST_BYTES = 1 << 26
"""Maximum size of an uncompressed element in bytes."""

MATRIX, COMPRESSED = 14, 15
STRUCT, CHAR = 2, 4
"""Classes of arrays; the numeric ones are 6 to 15."""
NUMBERS = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 9: "d", 12: "q", 13: "Q"}
"""Type of an element -> format of a number."""
TEXTS = {1: "latin1", 2: "latin1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
"""Type of an element -> encoding of text."""

Value = str | float | None


class Element(NamedTuple):
    """Type and data of an element."""

    kind: int
    data: bytes


def read_structs(content: bytes, name: str) -> list[dict[str, Value]]:
    """Return the elements of the struct array `name`: text and single numbers by field; None for other values.

    Args:
        content: Content of a MAT-file.
        name: Name of the variable.

    Raises:
        ValueError: If it is no such file, is truncated, or has no such struct array.
    """
    order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
    if order is None:
        raise ValueError("it is no MAT-file of level 5")
    for element in _elements(content[HEADER:], order):
        matrix = next(_elements(_unpacked(element.data), order)) if element.kind == COMPRESSED else element
        if matrix.kind == MATRIX and (found := _structs(matrix.data, order, name)) is not None:
            return found
    raise ValueError(f"it has no struct array {name}")


def _elements(data: bytes, order: str) -> Iterator[Element]:
    place = 0
    while place + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}2I", data, place)
        if small := kind >> 16:  # type and size in 2 bytes each
            kind, size, start = kind & 0xFFFF, small, place + 4
            if size > 4:
                raise ValueError("a small element has more than 4 bytes")
            place += 8
        else:
            start = place + 8
            place = start + size + (-size % 8 if kind != COMPRESSED else 0)
        if start + size > len(data):
            raise ValueError("it is truncated")
        yield Element(kind, data[start : start + size])


def _unpacked(data: bytes) -> bytes:
    try:
        content = zlib.decompressobj().decompress(data, MOST_BYTES + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if len(content) > MOST_BYTES:
        raise ValueError(f"it unpacks to more than {MOST_BYTES:,} bytes")
    return content


def _structs(data: bytes, order: str, wanted: str) -> list[dict[str, Value]] | None:
    """Return the elements of a struct array; None for an array of another class or name."""
    parts = _elements(data, order)
    flags, dimensions, name = next(parts), next(parts), next(parts)
    if _class_of(flags, order) != STRUCT or name.data.decode("latin1") != wanted:
        return None
    length = _numbers(next(parts), order)
    names = next(parts).data
    if len(length) != 1 or not 1 <= length[0] <= 64 or not names:
        raise ValueError("its struct array has no fields")
    width = int(length[0])
    fields = [names[at : at + width].split(b"\0")[0].decode("latin1") for at in range(0, len(names), width)]
    values = [_value(part, order) for part in parts]
    count = math.prod(map(int, _numbers(dimensions, order)))
    if len(values) != count * len(fields):
        raise ValueError(f"its struct array has {len(values)} values, not {count} x {len(fields)}")
    return [dict(zip(fields, values[at : at + len(fields)], strict=True)) for at in range(0, len(values), len(fields))]


def _value(element: Element, order: str) -> Value:
    """Return text or a number; None for other arrays."""
    if element.kind != MATRIX or not element.data:
        return None
    parts = list(_elements(element.data, order))
    if len(parts) < 4:
        return None
    kind, content = _class_of(parts[0], order), parts[3]
    if kind == CHAR and content.kind in TEXTS:
        encoding = TEXTS[content.kind]
        suffix = {"<": "-le", ">": "-be"}[order] if encoding in ("utf-16", "utf-32") else ""
        return content.data.decode(encoding + suffix)
    is_number = kind is not None and 6 <= kind <= 15 and content.kind in NUMBERS
    numbers = _numbers(content, order) if is_number else ()
    return numbers[0] if len(numbers) == 1 else None


def _class_of(flags: Element, order: str) -> int | None:
    return struct.unpack_from(f"{order}I", flags.data)[0] & 0xFF if len(flags.data) == 8 else None


def _numbers(element: Element, order: str) -> tuple[float, ...]:
    code = NUMBERS.get(element.kind, "")
    if not code or len(element.data) % struct.calcsize(f"={code}"):
        raise ValueError("it has numbers of an unknown kind")
    return struct.unpack(f"{order}{len(element.data) // struct.calcsize(f'={code}')}{code}", element.data)
