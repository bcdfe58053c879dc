"""Zip archives that all readers interpret in the same way: Python's reader checks them, another one may unpack them.

Readers differ if a file contains redundant information: in which central directory they use, in how they treat bytes
before the archive, upper-case names and duplicate names. Such files are therefore rejected.

The contents are checked too: with the CRC-32 of the members, which PyTorch's reader ignores, and with digests (see
t2t_config/weights/digests.py), which are in an additional member, `sha256.json`.
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
"""Before it, in zip64, the locator: signature, disk, offset of the record, disks."""
_END64 = struct.Struct("<4sQ2H2L4Q")
"""Before the locator: signature, size, versions, disk, its first disk, entries here, entries, size, offset."""
_LOCAL = struct.Struct("<4s5H3L2H")
"""Before each member: signature, version, flags, method, time, date, CRC, sizes, lengths of name and extra field."""
_ENCRYPTED = 1


@contextlib.contextmanager
def open_zip(source: Path | IO[bytes]) -> Iterator[zipfile.ZipFile]:
    """Open an archive that spans the whole file.

    Raises:
        FileNotFoundError: If the file does not exist.
        zipfile.BadZipFile: If the file is not a zip file, is damaged, or is ambiguous to other readers; the message
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
    """Return the offset of the only central directory, and the number of members that it declares."""
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
                raise zipfile.BadZipFile("its end records contradict each other")
            disk, first, here, count, size, start = wide
    if disk or first or here != count or start + size != end:
        raise zipfile.BadZipFile("its central directory is not where it should be")
    return start, count


def _check_names(members: list[zipfile.ZipInfo]) -> None:
    names = [info.orig_filename.lower() for info in members]
    if len(set(names)) != len(names):
        raise zipfile.BadZipFile("two members have the same name")
    if any("\0" in name for name in names):
        raise zipfile.BadZipFile("a name contains a null byte")
    if any(info.flag_bits & _ENCRYPTED for info in members):
        raise zipfile.BadZipFile("a member is encrypted")
    if any(info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for info in members):
        raise zipfile.BadZipFile("a member uses an unknown compression method")
    if any(info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size for info in members):
        raise zipfile.BadZipFile("an uncompressed member has two sizes")


def _check_places(file: IO[bytes], members: list[zipfile.ZipInfo], end: int) -> None:
    """Check that each member has its own bytes, before `end`, preceded by its own name."""
    at = 0
    for info in sorted(members, key=lambda info: info.header_offset):
        if info.header_offset < at or (at == 0 and info.header_offset != 0):
            raise zipfile.BadZipFile("members overlap, or something is before the first")
        signature, _, _, method, *_, name_length, extra_length = _read(file, _LOCAL, info.header_offset)
        name = file.read(name_length)
        text = name.decode("utf-8" if info.flag_bits & 0x800 else "cp437", "replace")
        if signature != b"PK\x03\x04" or text != info.orig_filename or method != info.compress_type:
            raise zipfile.BadZipFile("the header of a member contradicts the central directory")
        at = info.header_offset + _LOCAL.size + name_length + extra_length + info.compress_size
    if at > end:
        raise zipfile.BadZipFile("a member ends after the central directory")


def _read(file: IO[bytes], kind: struct.Struct, place: int) -> tuple[Any, ...]:
    if place < 0:
        raise zipfile.BadZipFile("it is too short")
    file.seek(place)
    data = file.read(kind.size)
    if len(data) != kind.size:
        raise zipfile.BadZipFile("it is truncated")
    return kind.unpack(data)


# --- CRC-32 and digests -------------------------------------------------------------------------------------


def check_members(file: IO[bytes] | Path, suffix: str = "") -> str:
    """Read all members whose names end with `suffix` and check their CRC-32.

    Returns:
        "crc32"; "" for a file without any, as written after `torch.serialization.set_crc32_options(False)`.

    Raises:
        DamagedError: If the CRC-32 of a member differs; the message names the member, but not the file.
        zipfile.BadZipFile, OSError, ...: If the zip itself is damaged or ambiguous (see `open_zip`).
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
    """Add `digests` to a zip file; None adds those of the bytes of its members."""
    with zipfile.ZipFile(file, "a") as archive:
        found = member_digests(archive) if digests is None else digests
        archive.writestr(_root(archive) + DIGESTS, json.dumps(found))


def read_digests(file: IO[bytes] | Path) -> dict[str, Any] | None:
    """Return the digests that `add_digests` added to a zip file; None if there are none, or it is not a zip file.

    Raises:
        DamagedError: If they are malformed.
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
    except Exception as error:  # damaged bytes raise nearly any error
        raise DamagedError(f"{DIGESTS} is not as saved") from error
    if not isinstance(found, dict):
        raise DamagedError(f"{DIGESTS} holds no digests")
    return found


def check_digests(file: Path) -> str:
    """Compare the members of a zip file with its digests and with their CRC-32.

    Returns:
        The kind of check: "sha256", "crc32" or "".

    Raises:
        DamagedError: If a member has changed since it was saved (the message names the member, but not the file), or
            the members are far larger than the file.
        zipfile.BadZipFile, OSError, ...: If the zip itself is damaged or ambiguous (see `open_zip`).
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
    """Return the SHA-256 of each member except the digests themselves."""
    found = {}
    for info in archive.infolist():
        if info.filename != _root(archive) + DIGESTS:
            with archive.open(info) as member:
                found[info.filename] = hashlib.file_digest(member, "sha256").hexdigest()  # type: ignore[arg-type]
    return found


def _starts_as_zip(file: IO[bytes] | Path) -> bool:
    """Return whether the file starts as a zip file; a pickle that ends like one does not count."""
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(file.open("rb")) if isinstance(file, Path) else file
        opened.seek(0)
        return opened.read(2) == b"PK"


def _root(archive: zipfile.ZipFile) -> str:
    """Return the folder that contains all members, with a "/", as PyTorch requires; "" if there is none."""
    roots = {name.partition("/")[0] if "/" in name else "" for name in archive.namelist()}
    return f"{roots.pop()}/" if len(roots) == 1 and roots != {""} else ""
