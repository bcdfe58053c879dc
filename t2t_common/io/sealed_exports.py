"""Digests in exported models: of the members of a zip (.pt2, of jax.export), or of all preceding bytes (.onnx).

An ONNX file is a protobuf message, to which another field may be appended: the last of them is a property called
`sha256`, in the form of `model.metadata_props`, with the digest of the bytes before it.
"""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

from t2t_common.io import zips
from t2t_config.weights.digests import KEY, SHA256, DamagedError

_KEY = b"\x0a" + bytes([len(KEY)]) + KEY.encode() + b"\x12\x40"  # field 1: the key; field 2: a value of 64 bytes
_START = b"\x72" + bytes([len(_KEY) + 64]) + _KEY
"""Start of the last property: field 14 of `ModelProto`, its length, its key, the length of its value."""


def seal(path: Path) -> None:
    """Add digests to an exported model that has none."""
    if _starts_as_zip(path):
        zips.add_digests(path)
    else:
        content = path.read_bytes()
        path.write_bytes(content + _START + hashlib.sha256(content).hexdigest().encode())


def check_sealed(path: Path) -> str:
    """Compare an exported model with its digests.

    Returns:
        The kind of check: "sha256", "crc32", or "" if the file has neither.

    Raises:
        ValueError: If the file has changed since it was written; the message names it, and in a zip the member.
    """
    try:
        if _starts_as_zip(path):
            return zips.check_digests(path)
        content = path.read_bytes()
        body, start, digest = content[: -len(_START) - 64], content[-len(_START) - 64 : -64], content[-64:]
        if start != _START:
            return ""
        if hashlib.sha256(body).hexdigest().encode() != digest:
            raise DamagedError("SHA-256")
    except (DamagedError, zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{path} is not as it was exported ({error}): export it again") from error
    return SHA256


def _starts_as_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"
