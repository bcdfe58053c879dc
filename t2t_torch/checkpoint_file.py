"""Read the weights of checkpoint files of any model, and write checkpoint files atomically.

Supported layouts: the release files of T2T-ViT (`{'state_dict_ema': ...}`), timm training checkpoints
(`state_dict`, `state_dict_ema`, `args`, ...), the authors' transfer-learning files (`{'net', 'acc', 'epoch'}`
with `module.` prefixes), DeiT's (`{'model': ...}`), bare state dicts, `.safetensors` and Paddle's `.pdparams`.
Parameter names of other projects are converted to the official ones (see `t2t_config.weights.layouts`).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from t2t_common.io.files import check_target, replace_file
from t2t_common.workdir.folder import latest_torch_file
from t2t_config.text import few, readable
from t2t_config.weights.digests import CRC32, SHA256, DamagedError, open_texts, seal_texts
from t2t_config.weights.hub import folder_metadata
from t2t_config.weights.layouts import OFFICIAL, to_official, unwrap
from t2t_config.weights.metadata import to_text
from t2t_torch.weights.digests import check_content, tensor_digests, torch_bytes
from t2t_torch.weights.plain_tensors import check_plain
from t2t_torch.weights.safe_unpickle import has_crc32, read_pickle

StateDict = dict[str, Tensor]

EMA_ENTRIES = ("state_dict_ema", "model_ema")
RAW_ENTRIES = ("state_dict", "model", "net")

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".tar")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Weights of a file by official name, and their origin.

    `entry` is the entry of the file that was read ('' for a bare state dict), `layout` the project whose naming it
    uses, `metadata` the file's own metadata, and `verified` the checksum used (see `LoadReport.verified`). `prefix` is
    the prefix removed from every name, and `ignored` are names that are not weights (see `unwrap`).
    """

    state_dict: StateDict
    entry: str = ""
    layout: str = OFFICIAL.name
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    verified: str = ""
    prefix: str = ""
    ignored: tuple[str, ...] = ()

    @property
    def is_ema(self) -> bool:
        return self.entry in EMA_ENTRIES


def read_state_dict(path: str | os.PathLike[str], *, use_ema: bool = True) -> StateDict:
    """Return the state dict (on the CPU) of a checkpoint in any supported layout; see `read_checkpoint`."""
    return read_checkpoint(path, use_ema=use_ema).state_dict


def read_checkpoint(path: str | os.PathLike[str], *, use_ema: bool = True) -> Checkpoint:
    """Read the weights of a file, of the latest checkpoint of a run's folder, or of a folder written by
    `save_pretrained`. No code in the file is executed.

    `use_ema` prefers the EMA weights of files that hold both. If a file has only one of the two, that one is read;
    `Checkpoint.entry` names it. The content is verified against the digests that `save_checkpoint` wrote, or in other
    zip files against their CRC-32.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is truncated, corrupt or changed since it was saved, would run code or exhaust memory, or
            holds no state dict; or a tensor is not plain (see `t2t_torch.weights.plain_tensors`).
    """
    named, path = path, find_checkpoint(path)
    found = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path, use_ema)
    found = dataclasses.replace(found, metadata={**found.metadata, **to_text(folder_metadata(Path(named), path))})
    own = unwrap(found.state_dict)
    try:
        state_dict, layout = to_official(own.weights)
    except ValueError as error:
        raise ValueError(f"{path} holds no state dict ({error}): save model.state_dict()") from None
    return dataclasses.replace(
        found, state_dict=state_dict, layout=layout.name, prefix=own.prefix, ignored=own.counters
    )


def find_checkpoint(path: str | os.PathLike[str]) -> Path:
    """Return the checkpoint file for `path`: `path` itself, the latest checkpoint of a `t2t_torch.train` run's folder,
    or the weights file of a folder written by `save_pretrained`.

    Raises:
        FileNotFoundError: `path` does not exist, or is another kind of folder.
    """
    file = latest_torch_file(Path(path))
    if file.is_file():
        return file
    remedy = (
        f"if JAX wrote this folder, python -m parity convert {path} FILE.pth" if file.is_dir() else "check the path"
    )
    raise FileNotFoundError(f"no checkpoint file at {path}: {remedy}")


def _read_torch(path: Path, use_ema: bool) -> Checkpoint:
    content = read_pickle(path)
    found = pick_entry(path, content, use_ema)
    _check_plain(path, found.state_dict)
    try:
        # A bare state dict has no entries, so all of it is compared.
        verified = check_content(path, content, {found.entry, "metadata"} if found.entry else None)
    except DamagedError as error:
        raise damaged(path, error) from error
    return dataclasses.replace(found, verified=verified or (CRC32 if has_crc32(path) else ""))


def _check_plain(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise a ValueError that names `path` unless all tensors are plain, as digests require; see `check_plain`."""
    try:
        check_plain(tensors)
    except ValueError as error:
        raise ValueError(f"cannot use {path}: {error}") from None


def damaged(path: Path, reason: DamagedError) -> ValueError:
    """Return the error for a file that was changed since it was saved."""
    return ValueError(f"{path} is damaged or was changed ({reason}): get another copy, or save its weights anew")


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            state_dict = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
            metadata = file.metadata() or {}
        _check_plain(path, state_dict)
        metadata, verified = open_texts(metadata, lambda: tensor_digests(state_dict))
    except DamagedError as error:
        raise damaged(path, error) from error
    except safetensors.SafetensorError as error:
        reason = readable(str(error), 200)
        raise ValueError(
            f"{path} is truncated, corrupt or not a safetensors file ({reason}): get another copy"
        ) from error
    return Checkpoint(state_dict, metadata=metadata, verified=verified)


def pick_entry(path: str | Path, content: Any, use_ema: bool) -> Checkpoint:
    """Return the weights in the loaded content of the file `path`, with the file's names; see `read_checkpoint`."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, no state dict: save model.state_dict()")
    notes = content["metadata"] if isinstance(content.get("metadata"), Mapping) else {}
    metadata = {key: text for key, text in notes.items() if isinstance(key, str) and isinstance(text, str)}  # ours
    order = EMA_ENTRIES + RAW_ENTRIES if use_ema else RAW_ENTRIES + EMA_ENTRIES
    entry = next((name for name in order if isinstance(content.get(name), Mapping)), "")
    weights = content[entry] if entry else content
    strangers = [str(k) for k, value in weights.items() if not isinstance(k, str) or not isinstance(value, Tensor)]
    if strangers or not weights:
        raise ValueError(
            f"{path} holds no state dict ({few(strangers) or 'empty'}): it has to be the file or one of "
            f"{', '.join(EMA_ENTRIES + RAW_ENTRIES)}"
        )
    return Checkpoint(dict(weights), entry, metadata=metadata)


def save_checkpoint(
    model_or_state_dict: nn.Module | Mapping[str, Tensor],
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write weights to `.safetensors`, or as `{'state_dict': ...}` to `.pth`, `.pth.tar`, `.pt` or `.bin`.

    The latter can be read by timm and by the authors' own `load_for_transfer_learning`. Both formats also store
    `metadata` (text to text) and digests of all tensors. The file is written under a temporary name, read back and
    renamed: a crash leaves the old file or the new one, never a partial one.

    Raises:
        ValueError: Unknown suffix, a tensor is not plain (quantized, sparse, ...; the message names it), or the file
            cannot be written (e.g. the disk is full) or differs when read back.
        FileNotFoundError: The folder does not exist.
    """
    path = Path(path)
    if path.suffix != ".safetensors" and path.suffix not in TORCH_SUFFIXES:
        raise ValueError(f"cannot write {path}: its name has to end with .safetensors, {', '.join(TORCH_SUFFIXES)}")
    check_target(path)  # before the tensors are copied
    source = model_or_state_dict
    tensors = source.state_dict() if isinstance(source, nn.Module) else source
    try:
        check_plain(tensors)
    except ValueError as error:
        raise ValueError(f"cannot write {path}: {error}") from None
    # Cloned, because torch.save would write the whole storage of a view.
    weights = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
    notes = dict(metadata) if metadata else {}
    with replace_file(path) as temporary:
        if path.suffix == ".safetensors":
            temporary.write_bytes(safetensors.torch.save(weights, metadata=seal_texts(notes, tensor_digests(weights))))
        else:
            temporary.write_bytes(torch_bytes({"state_dict": weights} | ({"metadata": notes} if notes else {})))
        check_written(temporary, path, lambda: read_checkpoint(temporary).verified)


def check_written(temporary: Path, path: Path, read: Callable[[], str]) -> None:
    """Read a file back before it is moved from `temporary` to `path`.

    Args:
        temporary: File that was written.
        path: File name to use in the error message.
        read: Function that reads the file and returns the checksum used to verify it.

    Raises:
        ValueError: The content differs from what was written.
    """
    try:
        if read() == SHA256:
            return
        reason = "its digests are missing"
    except ValueError as error:
        reason = str(error).replace(str(temporary), path.name)
    raise ValueError(
        f"cannot write {path} (read back, it differs from what was written: {reason}): choose another disk"
    )
