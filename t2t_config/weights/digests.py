"""Digests of what a checkpoint holds: written with every one, compared when it is read.

A tensor's digest is the SHA-256 of its name, dtype, shape and bytes (row-major, little-endian), the same in both
frameworks; that of anything else is the SHA-256 of its JSON, that of a file the SHA-256 of its bytes. Where they are:

- `.pth`, `.pth.tar`, `.pt`, `.bin`: the entry `sha256` beside `state_dict` (see t2t_torch/weights/digests.py).
- `.safetensors`: the key `sha256` of its metadata, JSON.
- folders of Orbax: `sha256.json` in the folder, of its files and of its tensors (see t2t_jax/weights/digests.py).
- config.json of a hub folder: its key `sha256`.
- exported models: a member `sha256.json` of a zip, the last property of an ONNX file (see
  t2t_common/io/sealed_exports.py).

Files without digests, of others or of earlier versions, are read all the same; `LoadReport` says so.
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
"""What the bytes of a file were compared with (see `LoadReport.verified`)."""
KEY = "sha256"
"""Under which digests are kept."""
METADATA = "metadata"
"""Stands for the metadata among the names of tensors of a safetensors file; tensors of this name have a `/` before."""

_DIGESTS = re.compile(rf'{{.*"{METADATA}": "[0-9a-f]{{64}}"}}', re.DOTALL)
"""What `seal_texts` writes."""

Digests = Mapping[str, str]


class DamagedError(ValueError):
    """What was read is not what was written."""


def of_tensor(name: str, dtype: str, shape: Iterable[int], data: Any) -> str:
    """Digest of a tensor.

    Args:
        name: of the tensor.
        dtype: as NumPy calls it: "float32", "bfloat16", ...
        shape: of the tensor.
        data: its bytes, row-major and little-endian; anything with a buffer.
    """
    digest = hashlib.sha256(json.dumps([name, dtype, [int(size) for size in shape]]).encode())
    digest.update(data)
    return digest.hexdigest()


def of_json(value: Any) -> str:
    """Digest of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def of_file(path: Path) -> str:
    """Digest of the bytes of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def compare(saved: Any, found: Digests) -> None:
    """Compares the digests that were written with those of what was read.

    Raises:
        DamagedError: something differs, is missing or was not there; the message names some of it, but no file.
    """
    if not isinstance(saved, Mapping) or not all(isinstance(text, str) for pair in saved.items() for text in pair):
        raise DamagedError("its digests are no digests")
    problems = {
        "not as saved (SHA-256)": [name for name in found if name in saved and saved[name] != found[name]],
        "missing": [name for name in saved if name not in found],
        "not among what was saved": [name for name in found if name not in saved],
    }
    told = [f"{few(names)} {'is' if len(names) == 1 else 'are'} {kind}" for kind, names in problems.items() if names]
    if told:
        raise DamagedError("; ".join(told))


def seal_texts(metadata: Mapping[str, str] | None, tensors: Digests) -> dict[str, str]:
    """The metadata of a safetensors file, with the digests of its tensors and of the metadata themselves."""
    texts = {key: text for key, text in (metadata or {}).items() if key != KEY}
    return {**texts, KEY: json.dumps(_with_metadata(texts, tensors))}


def open_texts(metadata: Mapping[str, str], tensors: Callable[[], Digests]) -> tuple[dict[str, str], str]:
    """The inverse of `seal_texts`: the metadata, and what they and the tensors were compared with, "" for nothing.

    Args:
        metadata: of the file.
        tensors: computes the digests of what was read; called where there are some to compare with.

    Raises:
        DamagedError: they are not what was saved.
    """
    texts = {key: text for key, text in metadata.items() if key != KEY}
    if KEY not in metadata:
        if any(map(_DIGESTS.fullmatch, texts.values())):  # the bit that changed is in the key
            raise DamagedError(f"its key {KEY} is missing")
        return texts, ""
    try:
        saved = json.loads(metadata[KEY])
    except (ValueError, RecursionError):
        raise DamagedError("its digests are no digests") from None
    compare(saved, _with_metadata(texts, tensors()))
    return texts, SHA256


def _with_metadata(texts: Mapping[str, str], tensors: Digests) -> dict[str, str]:
    return {(f"/{name}" if name == METADATA else name): digest for name, digest in tensors.items()} | {
        METADATA: of_json(texts)
    }
