"""Digests of the contents of checkpoints: written with every checkpoint and compared when it is read.

The digest of a tensor is the SHA-256 of its name, dtype, shape and bytes (row-major, little-endian), the same in both
frameworks; for other values it is the SHA-256 of their JSON, for a file the SHA-256 of its bytes. Digests are stored as
follows:

- `.pth`, `.pth.tar`, `.pt`, `.bin`: the entry `sha256` beside `state_dict` (see t2t_torch/weights/digests.py).
- `.safetensors`: the key `sha256` of its metadata, JSON.
- Orbax folders: `sha256.json` in the folder, for its files and tensors (see t2t_jax/weights/digests.py).
- config.json of a hub folder: its key `sha256`.
- exported models: a member `sha256.json` of a zip, the last property of an ONNX file (see
  t2t_common/io/sealed_exports.py).

Files without digests, from other projects or earlier versions, can still be read; `LoadReport` says so.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from t2t_config.text import few

SHA256, CRC32 = "sha256", "crc32"
"""Kinds of integrity checks of a file (see `LoadReport.verified`)."""
KEY = "sha256"
"""Key under which digests are stored."""
METADATA = "metadata"
"""Name of the metadata among the tensors of a safetensors file; tensors of this name are prefixed with `/`."""

_DIGESTS = re.compile(rf'{{.*"{METADATA}": "[0-9a-f]{{64}}"}}', re.DOTALL)
"""Pattern of the digests that `seal_texts` writes."""

Digests = Mapping[str, str]


class DamagedError(ValueError):
    """Data that was read differs from what was written."""


def of_tensor(name: str, dtype: str, shape: Iterable[int], data: Any) -> str:
    """Return the digest of a tensor.

    Args:
        name: Name of the tensor.
        dtype: NumPy name of the dtype: "float32", "bfloat16", ...
        shape: Shape of the tensor.
        data: Bytes of the tensor, row-major and little-endian; any object with the buffer protocol.
    """
    digest = hashlib.sha256(json.dumps([name, dtype, [int(size) for size in shape]]).encode())
    digest.update(data)
    return digest.hexdigest()


def of_json(value: Any) -> str:
    """Return the digest of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def of_file(path: Path) -> str:
    """Return the digest of the bytes of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def compare(saved: Any, found: Digests) -> None:
    """Compare saved digests with those of the data that was read.

    Raises:
        DamagedError: If a digest differs, is missing or is additional; the message lists some names, but not the file.
    """
    if not isinstance(saved, Mapping) or not all(isinstance(text, str) for pair in saved.items() for text in pair):
        raise DamagedError("its digests are invalid")
    problems = {
        "not as saved (SHA-256)": [name for name in found if name in saved and saved[name] != found[name]],
        "missing": [name for name in saved if name not in found],
        "not among what was saved": [name for name in found if name not in saved],
    }
    told = [f"{few(names)} {'is' if len(names) == 1 else 'are'} {kind}" for kind, names in problems.items() if names]
    if told:
        raise DamagedError("; ".join(told))


def seal_texts(metadata: Mapping[str, str] | None, tensors: Digests) -> dict[str, str]:
    """Return the metadata of a safetensors file with the digests of its tensors and of the metadata itself."""
    texts = {key: text for key, text in (metadata or {}).items() if key != KEY}
    return {**texts, KEY: json.dumps(_with_metadata(texts, tensors))}


def open_texts(metadata: Mapping[str, str], tensors: Callable[[], Digests]) -> tuple[dict[str, str], str]:
    """Inverse of `seal_texts`: return the metadata and the kind of check performed, "" for none.

    Args:
        metadata: Metadata of the file.
        tensors: Function that computes the digests of the tensors read; called only if there are saved digests.

    Raises:
        DamagedError: If the data differs from what was saved.
    """
    texts = {key: text for key, text in metadata.items() if key != KEY}
    if KEY not in metadata:
        if any(map(_DIGESTS.fullmatch, texts.values())):  # the key itself has been corrupted
            raise DamagedError(f"its key {KEY} is missing")
        return texts, ""
    try:
        saved = json.loads(metadata[KEY])
    except (ValueError, RecursionError):
        raise DamagedError("its digests are invalid") from None
    compare(saved, _with_metadata(texts, tensors()))
    return texts, SHA256


def _with_metadata(texts: Mapping[str, str], tensors: Digests) -> dict[str, str]:
    return {(f"/{name}" if name == METADATA else name): digest for name, digest in tensors.items()} | {
        METADATA: of_json(texts)
    }
