"""Read PyTorch checkpoint files as arrays in this package's names and layouts; `.safetensors` do not require torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from t2t_config.extras import install_hint
from t2t_config.shapes import sizes_of
from t2t_config.text import readable
from t2t_config.weights.digests import SHA256, DamagedError, open_texts, seal_texts
from t2t_config.weights.layouts import to_official, unwrap
from t2t_config.weights.metadata import from_text
from t2t_jax.weights.digests import array_digests

DTYPES: dict[str, Any] = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": ml_dtypes.bfloat16, "I64": "<i8"}
"""safetensors dtype -> NumPy dtype. (`safetensors.numpy` does not support bfloat16.)"""


class Weights(NamedTuple):
    """Arrays by dotted name, the metadata saved with them (`model`, `img_size`, `in_chans`, ...), and their origin.

    `entry` is the part of the file or folder that was read ('' for a bare state dict), `layout` the project whose
    naming it uses, and `verified` the checksum used (see `LoadReport.verified`). `prefix` is the prefix removed from
    every name, and `ignored` are names that are not weights (see `t2t_config.weights.layouts.unwrap`).
    """

    arrays: dict[str, np.ndarray]
    metadata: dict[str, Any]
    entry: str
    is_ema: bool
    layout: str
    verified: str = ""
    prefix: str = ""
    ignored: tuple[str, ...] = ()


def read_torch_file(path: str | Path, *, use_ema: bool = True) -> Weights:
    """Read the weights of a `.pth`, `.pth.tar`, `.safetensors`, `.pdparams`, ... file in any layout that `t2t_torch`
    supports.

    The metadata are inferred from tensor shapes (see `t2t_config.shapes.sizes_of`) and overridden by the file's own.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file cannot be read, or is pickled and torch is not installed.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        found = _read_safetensors(path)
    else:
        try:
            from t2t_torch.checkpoint_file import read_checkpoint
        except ImportError as error:
            raise ValueError(f"{path} needs PyTorch to read: {install_hint('torch')}") from error
        file = read_checkpoint(path, use_ema=use_ema)
        state = {name: _to_numpy(tensor) for name, tensor in file.state_dict.items()}
        found = Weights(
            state,
            dict(file.metadata),
            file.entry,
            file.is_ema,
            file.layout,
            verified=file.verified,
            prefix=file.prefix,
            ignored=file.ignored,
        )
    metadata = sizes_of({name: array.shape for name, array in found.arrays.items()}) | from_text(found.metadata)
    return found._replace(arrays=from_torch(found.arrays), metadata=metadata)


def _read_safetensors(path: Path) -> Weights:
    """Read the weights in PyTorch's names and layouts, with the file's metadata as strings."""
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint file at {path}: check the path")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
        tensors = safetensors.deserialize(path.read_bytes())
    except safetensors.SafetensorError as error:
        reason = readable(str(error), 200)
        raise ValueError(
            f"{path} is truncated, corrupt or not a safetensors file ({reason}): get another copy"
        ) from error
    arrays = {}
    for name, tensor in sorted(tensors):  # the library's order differs between calls
        if tensor["dtype"] not in DTYPES:
            kind = f"{readable(name)} is {tensor['dtype']}"
            raise ValueError(f"{path} holds no state dict ({kind}): save model.state_dict()")
        arrays[name] = np.frombuffer(tensor["data"], DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
    try:
        metadata, verified = open_texts(metadata, lambda: array_digests(arrays))
    except DamagedError as error:
        raise ValueError(
            f"{path} is damaged or was changed ({error}): get another copy, or save its weights anew"
        ) from error
    own = unwrap(arrays)
    try:
        official, layout = to_official(own.weights)
    except ValueError as error:
        raise ValueError(f"{path} holds no state dict ({error}): save model.state_dict()") from None
    return Weights(official, metadata, "", False, layout.name, verified, own.prefix, own.counters)


def _to_numpy(tensor: Any) -> np.ndarray:
    """Convert a torch tensor to an array; bfloat16, which NumPy does not have, becomes float32."""
    tensor = tensor.detach()
    return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()


def from_torch(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Convert an official state dict to this package's names and layouts.

    Paths are the same. Only `weight` leaves are renamed and transposed, depending on the layer: `scale` for LayerNorm,
    `kernel` (in, out) for Linear, `kernel` (K.., in, out) for convolutions.
    """
    arrays = {}
    for name, array in state_dict.items():
        path, _, leaf = name.rpartition(".")
        if leaf == "weight" and array.ndim == 1:
            name = f"{path}.scale"
        elif leaf == "weight" and array.ndim:
            name, array = f"{path}.kernel", array.transpose(*range(2, array.ndim), 1, 0)
        arrays[name] = array
    return arrays


def to_torch(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Inverse of `from_torch`."""
    state_dict = {}
    for name, array in arrays.items():
        array = np.asarray(array)
        state_dict[torch_name(name)] = np.ascontiguousarray(array.transpose(torch_axes(name, array.ndim)))
    return state_dict


def torch_name(name: str) -> str:
    """Return the official name of an array of this package."""
    path, _, leaf = name.rpartition(".")
    return f"{path}.weight" if leaf in ("kernel", "scale") else name


def torch_axes(name: str, ndim: int) -> tuple[int, ...]:
    """Return the permutation that brings the axes of an array of this package into PyTorch's order."""
    if name.rpartition(".")[2] == "kernel" and ndim > 1:
        return (ndim - 1, ndim - 2, *range(ndim - 2))
    return tuple(range(ndim))


def save_safetensors(arrays: Mapping[str, Any], path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write arrays of a model (see `model_arrays`) in the format of `t2t_torch.save_checkpoint`: official names and
    layouts, unchanged dtypes, with digests. Does not require torch. The caller renames the file to its final name.

    Raises:
        ValueError: The file read back differs from what was written.
    """
    state_dict = to_torch(arrays)
    texts = seal_texts(metadata, array_digests(state_dict))
    # Not `save_file`: it reports a full disk as a SafetensorError, and makes the file accessible only to its owner.
    Path(path).write_bytes(safetensors.numpy.save(state_dict, texts))
    if _read_safetensors(Path(path)).verified != SHA256:
        raise ValueError(f"cannot write {path} (read back, its digests are missing): choose another disk")
