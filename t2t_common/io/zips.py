"""Zip archives that read the same to everybody: what is checked with Python's reader, another one unpacks.

Readers differ where a file says a thing twice: in which central directory they take, in what they do with bytes before
the archive, with names in upper case, with a name that is there twice. So a file may say it only once.

And their contents: the CRC-32 of the members, which PyTorch's reader does not look at, and digests (see
t2t_config/weights/digests.py), which are one more member, `sha256.json`, beside the others.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from t2t_config.text import readable
from t2t_config.weights.digests import CRC32, SHA256, DamagedError, compare
from t2t_config.weights.json_limits import parse
from t2t_config.weights.untrusted import MAX_EXPANSION

CHUNK = 1 << 20
DIGESTS = "sha256.json"

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


# --- CRC-32 and digests -------------------------------------------------------------------------------------


def check_members(file: IO[bytes] | Path, suffix: str = "") -> str:
    """Reads all members whose names end with `suffix` and compares their CRC-32.

    Returns:
        "crc32"; "" for a file without any, as `torch.serialization.set_crc32_options(False)` writes it.

    Raises:
        DamagedError: a member has another CRC-32; the message names it, but no file.
        zipfile.BadZipFile, OSError, ...: the zip itself is damaged, or reads as two (see `open_zip`).
    """
    with open_zip(file) as archive:
        members = archive.infolist()
        if not any(info.CRC for info in members):
            return ""
        for info in members:
            if info.filename.lower().endswith(suffix):
                _check(archive, info)
    return CRC32


def _check(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
    with archive.open(info) as member:
        try:
            while member.read(CHUNK):
                pass
        except zipfile.BadZipFile as error:
            raise DamagedError(f"{readable(info.filename)} is not as saved (CRC-32)") from error


def add_digests(file: IO[bytes] | Path, digests: Mapping[str, str] | None = None) -> None:
    """Adds `digests` to a zip file; None for those of the bytes of its members."""
    with zipfile.ZipFile(file, "a") as archive:
        found = member_digests(archive) if digests is None else digests
        archive.writestr(_root(archive) + DIGESTS, json.dumps(found))


def read_digests(file: IO[bytes] | Path) -> dict[str, Any] | None:
    """What `add_digests` added to a zip file; None where there are none, or no zip.

    Raises:
        DamagedError: they are no digests.
    """
    if not _starts_as_zip(file):
        return None
    try:
        with open_zip(file) as archive:
            name = _root(archive) + DIGESTS
            if name not in archive.namelist():
                return None
            if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
                raise DamagedError(f"{DIGESTS} is compressed")
            found = parse(archive.read(name))
    except Exception as error:  # damaged bytes raise nearly anything
        raise DamagedError(f"{DIGESTS} is not as saved") from error
    if not isinstance(found, dict):
        raise DamagedError(f"{DIGESTS} holds no digests")
    return found


def check_digests(file: Path) -> str:
    """Compares the members of a zip file with the digests in it, and with their CRC-32.

    Returns:
        What they were compared with: "sha256", "crc32" or "".

    Raises:
        DamagedError: a member is not what was saved, the message names it, but no file; or all of them are far more
            than the file has bytes.
        zipfile.BadZipFile, OSError, ...: the zip itself is damaged, or reads as two (see `open_zip`).
    """
    with open_zip(file) as archive:
        if sum(info.file_size for info in archive.infolist()) > MAX_EXPANSION * file.stat().st_size:
            raise DamagedError("it unpacks to far more than its size")
    verified = check_members(file)
    saved = read_digests(file)
    if saved is None:
        return verified
    with open_zip(file) as archive:
        compare(saved, member_digests(archive))
    return SHA256


def member_digests(archive: zipfile.ZipFile) -> dict[str, str]:
    """SHA-256 of each member but the digests themselves."""
    found = {}
    for info in archive.infolist():
        if info.filename != _root(archive) + DIGESTS:
            with archive.open(info) as member:
                found[info.filename] = hashlib.file_digest(member, "sha256").hexdigest()  # type: ignore[arg-type]
    return found


def _starts_as_zip(file: IO[bytes] | Path) -> bool:
    """Whether it is the beginning that is a zip's: a pickle that ends like one is none."""
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(file.open("rb")) if isinstance(file, Path) else file
        opened.seek(0)
        return opened.read(2) == b"PK"


def _root(archive: zipfile.ZipFile) -> str:
    """The folder that all members are in, with a "/", which PyTorch demands; "" where there is none."""
    roots = {name.partition("/")[0] if "/" in name else "" for name in archive.namelist()}
    return f"{roots.pop()}/" if len(roots) == 1 and roots != {""} else ""
