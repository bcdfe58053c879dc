"""Checkpoint files, whatever the model: what weights a file holds, and an atomic way to write one.

Layouts read: the release files of T2T-ViT (`{'state_dict_ema': ...}`), timm training checkpoints
(`state_dict`, `state_dict_ema`, `args`, ...), the authors' transfer-learning files (`{'net', 'acc', 'epoch'}`
with `module.` prefixes), DeiT's (`{'model': ...}`), bare state dicts, `.safetensors` and Paddle's `.pdparams`.
Other projects' names become the official ones (see `t2t_config.weights.layouts`).
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
    """The weights of a file by official name, the entry they came from ('' for a bare state dict), whose names
    the file carries, its own metadata, and what its bytes were compared with (see `LoadReport.verified`); what wrapped
    every name, and which names were no weights (see `unwrap`).
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
    """Name -> tensor (on the CPU) of a checkpoint in any layout of this module; see `read_checkpoint`."""
    return read_checkpoint(path, use_ema=use_ema).state_dict


def read_checkpoint(path: str | os.PathLike[str], *, use_ema: bool = True) -> Checkpoint:
    """The weights of a file, of the latest one of a run's folder, or of a folder that `save_pretrained` wrote; no code
    of the file is ever run.

    `use_ema` prefers the EMA weights of files that hold both. A file with only one of the two gives that one,
    and `Checkpoint.entry` says which. What is read is compared with the digests that `save_checkpoint` wrote, or of
    other zip files with their CRC-32.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is truncated or corrupt, is not what was saved, would run code or fill the memory, or
            holds no state dict; or a tensor is no plain one (see `t2t_torch.weights.plain_tensors`).
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
    """The file that `path` means: itself, the latest step of a folder of `t2t_torch.train`, or the weights of a folder
    that `save_pretrained` wrote.

    Raises:
        FileNotFoundError: nothing at `path`, or a folder of another kind.
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
        # A bare state dict has no entries: then all of it is compared.
        verified = check_content(path, content, {found.entry, "metadata"} if found.entry else None)
    except DamagedError as error:
        raise damaged(path, error) from error
    return dataclasses.replace(found, verified=verified or (CRC32 if has_crc32(path) else ""))


def _check_plain(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Before digests are computed, which are of plain tensors; see `check_plain`."""
    try:
        check_plain(tensors)
    except ValueError as error:
        raise ValueError(f"cannot use {path}: {error}") from None


def damaged(path: Path, reason: DamagedError) -> ValueError:
    """The error of a file that is not what was saved."""
    return ValueError(f"{path} is damaged or was changed ({reason}): get it again, or save its weights anew")


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
        raise ValueError(f"{path} is truncated, corrupt or no safetensors file ({reason}): get it again") from error
    return Checkpoint(state_dict, metadata=metadata, verified=verified)


def pick_entry(path: str | Path, content: Any, use_ema: bool) -> Checkpoint:
    """The weights in what a file (called `path` in errors) was loaded to, in its own names; see `read_checkpoint`."""
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
    """Writes weights to `.safetensors`, or as `{'state_dict': ...}` to `.pth`, `.pth.tar`, `.pt` or `.bin`.

    The latter is what timm and the authors' own `load_for_transfer_learning` read. `metadata` (text to text)
    goes along in both, and so do digests of all tensors. The file is read back before it takes its name: a crash
    leaves the old file or the new one, never a half.

    Raises:
        ValueError: another suffix, a tensor that is no plain one (quantised, sparse, ...; the message names it), or
            the file cannot be written (a full disk ...) or is not read back as written.
        FileNotFoundError: the folder does not exist.
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
    # Cloned, so that a view does not drag its whole storage into the file.
    weights = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
    notes = dict(metadata) if metadata else {}
    with replace_file(path) as temporary:
        if path.suffix == ".safetensors":
            temporary.write_bytes(safetensors.torch.save(weights, metadata=seal_texts(notes, tensor_digests(weights))))
        else:
            temporary.write_bytes(torch_bytes({"state_dict": weights} | ({"metadata": notes} if notes else {})))
        check_written(temporary, path, lambda: read_checkpoint(temporary).verified)


def check_written(temporary: Path, path: Path, read: Callable[[], str]) -> None:
    """Reads a file back, before it goes from `temporary` to `path`.

    Args:
        temporary: where it was written.
        path: what it is called in the error.
        read: reads it and says what it was compared with.

    Raises:
        ValueError: it is not what was written.
    """
    try:
        if read() == SHA256:
            return
        reason = "its digests are missing"
    except ValueError as error:
        reason = str(error).replace(str(temporary), path.name)
    raise ValueError(f"cannot write {path} (read back, it is not what was written: {reason}): choose another disk")
