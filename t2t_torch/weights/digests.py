"""Digests of PyTorch tensors and of files written by `torch.save`, as defined in t2t_config/weights/digests.py.

Twin: t2t_jax/weights/digests.py.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t2t_common.io import zips
from t2t_config.weights.digests import SHA256, DamagedError, compare, of_json, of_tensor

PLAIN = (str, int, float, bool, bytes, type(None))


def tensor_digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the digest of each tensor by name.

    Raises:
        ValueError: A tensor has no plain data: sparse, quantized, nested, or on the device "meta".
    """
    return {name: _of(name, tensor) for name, tensor in tensors.items()}


def _of(name: str, tensor: Tensor) -> str:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta or tensor.is_nested:
        raise ValueError(f"{name} is not a dense tensor with data: convert it first")
    whole = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    dtype = str(tensor.dtype).removeprefix("torch.")
    return of_tensor(name, dtype, tensor.shape, whole.reshape(-1).view(torch.uint8).numpy())


def content_digests(content: Mapping[str, Any]) -> dict[str, str]:
    """Return the digests of a dictionary to be written by `torch.save`: one per tensor, by path
    (`state_dict/head.weight`), and one for all other values of an entry (`optimizer/*`)."""
    found: dict[str, str] = {}
    for entry, value in content.items():
        tensors: dict[str, Tensor] = {}
        others: list[list[str]] = []
        _sort(str(entry), value, tensors, others)
        found |= tensor_digests(tensors)
        if others:
            found[f"{entry}/*"] = of_json(others)
    return found


def _sort(path: str, value: Any, tensors: dict[str, Tensor], others: list[list[str]]) -> None:
    """Collect the tensors in `value` in `tensors`, and everything else, as text, in `others`."""
    if isinstance(value, Tensor):
        tensors[path] = value
    elif isinstance(value, Mapping):
        others.append([path, "mapping", str(len(value))])
        for key, inner in value.items():
            _sort(f"{path}/{key}", inner, tensors, others)
    elif isinstance(value, list | tuple):
        others.append([path, type(value).__name__, str(len(value))])
        for number, inner in enumerate(value):
            _sort(f"{path}/{number}", inner, tensors, others)
    else:
        others.append([path, repr(value) if isinstance(value, PLAIN) else type(value).__name__])


def check_content(path: Path, content: Any, entries: Collection[str] | None = None) -> str:
    """Compare content that `torch.load` read from `path` with the file's digests.

    Args:
        path: File written by `torch.save`.
        content: Content read from it.
        entries: Entries to check; None for all.

    Returns:
        Name of the checksum used; "" for a file without digests.

    Raises:
        DamagedError: The content differs from what was saved.
    """
    saved = zips.read_digests(path)
    if saved is None or not isinstance(content, Mapping):
        return ""
    chosen = {name: value for name, value in content.items() if entries is None or name in entries}
    saved = {name: digest for name, digest in saved.items() if entries is None or name.partition("/")[0] in entries}
    try:
        compare(saved, content_digests(chosen))
    except RecursionError:
        raise DamagedError("it is nested too deep") from None
    return SHA256


def torch_bytes(content: Mapping[str, Any]) -> memoryview:
    """Serialize `content` with `torch.save`, with its digests as an additional zip member, which PyTorch ignores.

    This is done in memory, because PyTorch's zip writer reports a full disk as a RuntimeError when writing to a file.
    """
    file = io.BytesIO()
    torch.save(dict(content), file)
    zips.add_digests(file, content_digests(content))
    return file.getbuffer()
