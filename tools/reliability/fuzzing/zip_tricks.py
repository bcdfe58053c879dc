"""Zip files that one reader reads as another file than the next one does."""

from __future__ import annotations

import io
import random
import struct
import zipfile
from collections.abc import Callable, Mapping

END = struct.Struct("<4s4H2LH")


def zipped(members: Mapping[str, bytes], kind: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def parts(data: bytes) -> tuple[bytes, bytes, tuple]:
    """What is before the central directory, the directory, and the end."""
    end = END.unpack(data[-END.size :])
    return data[: end[6]], data[end[6] : end[6] + end[5]], end


def joined(body: bytes, directory: bytes, end: tuple, **changed: int) -> bytes:
    fields = dict(
        zip(("sign", "disk", "first", "here", "count", "size", "start", "comment"), end, strict=True),
        size=len(directory),
        start=len(body),
    )
    return body + directory + END.pack(*(fields | changed).values())


def two_directories(data: bytes) -> bytes:
    """One where the end says, and another right before the end, in which all but pickles seem to be empty.

    Python's reader takes the latter, and all offsets in it as so much less as there is between both.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
        kind = archive.infolist()[0].compress_type
    folder = next(iter(members)).partition("/")[0]
    room = {f"{folder}/room": random.Random(0).randbytes(2000)}
    body, directory, end = parts(zipped({**room, **members}, kind))
    other = bytearray(directory)
    place = 0
    while place < len(other):
        lengths = struct.unpack_from("<3H", other, place + 28)
        if not other[place + 46 : place + 46 + lengths[0]].endswith(b".pkl"):
            other[place + 24 : place + 28] = bytes(4)  # unpacked size
        struct.pack_into(
            "<L", other, place + 42, max(0, struct.unpack_from("<L", other, place + 42)[0] - len(directory))
        )
        place += 46 + sum(lengths)
    return joined(body + directory, bytes(other), end, start=len(body))


def something_before(data: bytes) -> bytes:
    return b"#!/bin/sh\n" + data


def something_before_that_is_counted(data: bytes) -> bytes:
    body, directory, end = parts(data)
    moved = bytearray(directory)
    place = 0
    while place < len(moved):
        struct.pack_into("<L", moved, place + 42, 10 + struct.unpack_from("<L", moved, place + 42)[0])
        place += 46 + sum(struct.unpack_from("<3H", moved, place + 28))
    return joined(b"PK\x03\x04......" + body, bytes(moved), end)


def something_behind(data: bytes) -> bytes:
    return data[:-2] + b"\x04\0####"


def other_count(data: bytes) -> bytes:
    body, directory, end = parts(data)
    return joined(body, directory, end, here=end[4] - 1, count=end[4] - 1)


def two_counts(data: bytes) -> bytes:
    body, directory, end = parts(data)
    return joined(body, directory, end, here=end[4] - 1)


def other_local_name(data: bytes) -> bytes:
    return data[:30] + b"X" + data[31:]


def two_ends(data: bytes) -> bytes:
    """A zip64 end that is not where its locator says."""
    body, directory, end = parts(data)
    wide = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, end[4], end[4], len(directory), len(body))
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 4, 1)
    return body + directory + wide + locator + data[-END.size :]


def upper_case_twin(data: bytes) -> bytes:
    """Readers that take no notice of case find either."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    name, content = next(iter(members.items()))
    return zipped({**members, name.upper(): content})


def name_with_zero(data: bytes) -> bytes:
    """Python's reader takes the name up to the zero."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    found = zipped({**members, "archive/odd_name": b""})
    return found.replace(b"archive/odd_name", b"archive/odd\0name")


TRICKS: Mapping[str, Callable[[bytes], bytes]] = {
    trick.__name__: trick
    for trick in (
        two_directories,
        something_before,
        something_before_that_is_counted,
        something_behind,
        other_count,
        two_counts,
        other_local_name,
        two_ends,
        upper_case_twin,
        name_with_zero,
    )
}
