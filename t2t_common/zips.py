"""Zip archives that read the same to everybody: what is checked with Python's reader, another one unpacks.

Readers differ where a file says a thing twice: in which central directory they take, in what they do with bytes before
the archive, with names in upper case, with a name that is there twice. So a file may say it only once.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

_END = struct.Struct("<4s4H2LH")
"""End of central directory: signature, disk, its first disk, entries here, entries, size, offset, length of comment."""
_LOCATOR = struct.Struct("<4sLQL")
"""Before it, in zip64: signature, disk, offset of the record, disks."""
_END64 = struct.Struct("<4sQ2H2L4Q")
"""And before that: signature, size, versions, disk, its first disk, entries here, entries, size, offset."""
_LOCAL = struct.Struct("<4s5H3L2H")
"""Before each member: signature, version, flags, method, time, date, CRC, sizes, lengths of name and extra field."""
_ENCRYPTED = 1


@contextlib.contextmanager
def open_zip(source: Path | IO[bytes]) -> Iterator[zipfile.ZipFile]:
    """The archive, which starts where the file starts and ends where it ends.

    Raises:
        FileNotFoundError: no such file.
        zipfile.BadZipFile: no zip file, a damaged one, or one that another reader could read as another; the message
            does not name the file.
    """
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(source.open("rb")) if isinstance(source, Path) else source
        archive = stack.enter_context(zipfile.ZipFile(file))
        members = archive.infolist()
        start, count = _directory(file)
        if len(members) != count:
            raise zipfile.BadZipFile(f"{len(members)} members are listed, {count} announced")
        _check_names(members)
        _check_places(file, members, start)
        yield archive


def _directory(file: IO[bytes]) -> tuple[int, int]:
    """Where the only central directory starts, and how many members it announces."""
    end = file.seek(0, os.SEEK_END) - _END.size
    signature, disk, first, here, count, size, start, comment = _read(file, _END, end)
    if signature != b"PK\x05\x06" or comment:
        raise zipfile.BadZipFile("it does not end with its central directory")
    if end >= _LOCATOR.size:
        mark, _, place, disks = _read(file, _LOCATOR, end - _LOCATOR.size)
        if mark == b"PK\x06\x07":
            end -= _LOCATOR.size + _END64.size
            mark, length, _, _, *wide = _read(file, _END64, end)
            narrow = (disk, first, here, count, size, start)
            limits = (0xFFFF,) * 4 + (0xFFFFFFFF,) * 2
            same = all(b in (a, most) for a, b, most in zip(wide, narrow, limits, strict=True))
            if mark != b"PK\x06\x06" or (length, place, disks) != (_END64.size - 12, end, 1) or not same:
                raise zipfile.BadZipFile("its two ends contradict each other")
            disk, first, here, count, size, start = wide
    if disk or first or here != count or start + size != end:
        raise zipfile.BadZipFile("its central directory is not where it should be")
    return start, count


def _check_names(members: list[zipfile.ZipInfo]) -> None:
    names = [info.orig_filename.lower() for info in members]
    if len(set(names)) != len(names):
        raise zipfile.BadZipFile("two members have one name")
    if any("\0" in name for name in names):
        raise zipfile.BadZipFile("a name has a zero in it")
    if any(info.flag_bits & _ENCRYPTED for info in members):
        raise zipfile.BadZipFile("a member is encrypted")
    if any(info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for info in members):
        raise zipfile.BadZipFile("a member is packed in an unusual way")
    if any(info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size for info in members):
        raise zipfile.BadZipFile("a member that is not packed has two sizes")


def _check_places(file: IO[bytes], members: list[zipfile.ZipInfo], end: int) -> None:
    """Each member has its own bytes, before `end`, and its own name before them."""
    at = 0
    for info in sorted(members, key=lambda info: info.header_offset):
        if info.header_offset < at or (at == 0 and info.header_offset != 0):
            raise zipfile.BadZipFile("members overlap, or something is before the first")
        signature, _, _, method, *_, name_length, extra_length = _read(file, _LOCAL, info.header_offset)
        name = file.read(name_length)
        text = name.decode("utf-8" if info.flag_bits & 0x800 else "cp437", "replace")
        if signature != b"PK\x03\x04" or text != info.orig_filename or method != info.compress_type:
            raise zipfile.BadZipFile("a member says of itself what the central directory does not")
        at = info.header_offset + _LOCAL.size + name_length + extra_length + info.compress_size
    if at > end:
        raise zipfile.BadZipFile("a member ends behind the central directory")


def _read(file: IO[bytes], kind: struct.Struct, place: int) -> tuple[Any, ...]:
    if place < 0:
        raise zipfile.BadZipFile("it is too short")
    file.seek(place)
    data = file.read(kind.size)
    if len(data) != kind.size:
        raise zipfile.BadZipFile("it is cut off")
    return kind.unpack(data)
