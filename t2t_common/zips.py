"""Zip files, as PyTorch and our exports write them: their CRC-32, which PyTorch's reader does not look at, and digests.

Digests (see t2t_config/digests.py) are one more member, `sha256.json`, beside the others.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from t2t_config.digests import CRC32, SHA256, DamagedError, compare
from t2t_config.load_report import readable

CHUNK = 1 << 20
DIGESTS = "sha256.json"


def check_members(file: IO[bytes] | Path, suffix: str = "") -> str:
    """Reads all members whose names end with `suffix` and compares their CRC-32.

    Returns:
        "crc32"; "" for a file without any, as `torch.serialization.set_crc32_options(False)` writes it.

    Raises:
        DamagedError: a member has another CRC-32; the message names it, but no file.
        zipfile.BadZipFile, OSError, ...: the zip itself is damaged.
    """
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if not any(info.CRC for info in members):
            return ""
        for info in members:
            if info.filename.endswith(suffix):
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
    if not zipfile.is_zipfile(file):
        return None
    try:
        with zipfile.ZipFile(file) as archive:
            name = _root(archive) + DIGESTS
            if name not in archive.namelist():
                return None
            if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
                raise DamagedError(f"{DIGESTS} is compressed")
            found = json.loads(archive.read(name))
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
        DamagedError: a member is not what was saved; the message names it, but no file.
        zipfile.BadZipFile, OSError, ...: the zip itself is damaged.
    """
    verified = check_members(file)
    saved = read_digests(file)
    if saved is None:
        return verified
    with zipfile.ZipFile(file) as archive:
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


def _root(archive: zipfile.ZipFile) -> str:
    """The folder that all members are in, with a "/", which PyTorch demands; "" where there is none."""
    roots = {name.partition("/")[0] if "/" in name else "" for name in archive.namelist()}
    return f"{roots.pop()}/" if len(roots) == 1 and roots != {""} else ""
