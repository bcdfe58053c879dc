"""Checkpoint files, whatever the model: what weights a file holds, and an atomic way to write one.

Layouts read: the release files of T2T-ViT (`{'state_dict_ema': ...}`), timm training checkpoints
(`state_dict`, `state_dict_ema`, `args`, ...), the authors' transfer-learning files (`{'net', 'acc', 'epoch'}`
with `module.` prefixes), DeiT's (`{'model': ...}`), bare state dicts and `.safetensors`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import pickle
import pickletools
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

StateDict = dict[str, Tensor]

EMA_ENTRIES = ("state_dict_ema", "model_ema")
RAW_ENTRIES = ("state_dict", "model", "net")

WRAPPER_PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every name."""

SAFE_CLASSES: list[Any] = [argparse.Namespace]
"""All that a PyTorch file may hold besides tensors and plain values: timm keeps its command line (`args`)."""

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".tar")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The weights of a file, the entry they came from ('' for a bare state dict), the file's own metadata."""

    state_dict: StateDict
    entry: str = ""
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def is_ema(self) -> bool:
        return self.entry in EMA_ENTRIES


def read_state_dict(path: str | os.PathLike[str], *, use_ema: bool = True) -> StateDict:
    """Name -> tensor (on the CPU) of a checkpoint in any layout of this module; see `read_checkpoint`."""
    return read_checkpoint(path, use_ema=use_ema).state_dict


def read_checkpoint(path: str | os.PathLike[str], *, use_ema: bool = True) -> Checkpoint:
    """The weights of a file; no code of the file is ever run.

    `use_ema` prefers the EMA weights of files that hold both. A file with only one of the two gives that one,
    and `Checkpoint.entry` says which.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is truncated or corrupt, would run code, or holds no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint file at {path}: check the path")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return _pick_entry(path, _read_pickle(path), use_ema)


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            state_dict = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
            metadata = file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is truncated, corrupt or no safetensors file ({error}): get it again") from error
    return Checkpoint(_without_wrapper(state_dict), metadata=metadata)


def _read_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        if _is_plain_pickle_with_code(file):
            raise ValueError(_would_run_code(path, "a plain pickle, not written by torch.save"))
        file.seek(0)
        try:
            with torch.serialization.safe_globals(SAFE_CLASSES):
                return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged bytes raise nearly anything: KeyError, EOFError, OSError ...
            code = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
            if code:
                raise ValueError(_would_run_code(path, code[1])) from error
            raise ValueError(
                f"{path} is truncated, corrupt or no PyTorch file ({type(error).__name__}): get it again"
            ) from error


def _is_plain_pickle_with_code(file: IO[bytes]) -> bool:
    """Whether a file is a pickle that names classes or functions; read, never run.

    Files of `torch.save` are not: they begin with a zip header, or (before PyTorch 1.6) with a pickled number.
    """
    try:
        return any(op.name in ("GLOBAL", "STACK_GLOBAL", "INST") for op, _, _ in pickletools.genops(file))
    except (ValueError, OverflowError, MemoryError):
        return False  # no pickle, or a damaged one


def _would_run_code(path: Path, what: str) -> str:
    return f"{path} would run code when loaded ({what}), so it is refused: only a state_dict is read"


def _pick_entry(path: Path, content: Any, use_ema: bool) -> Checkpoint:
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, no state dict: save model.state_dict()")
    metadata = content["metadata"] if isinstance(content.get("metadata"), Mapping) else {}
    order = EMA_ENTRIES + RAW_ENTRIES if use_ema else RAW_ENTRIES + EMA_ENTRIES
    entry = next((name for name in order if isinstance(content.get(name), Mapping)), "")
    weights = content[entry] if entry else content
    strangers = [str(name) for name, value in weights.items() if not isinstance(value, Tensor)]
    if strangers or not weights:
        raise ValueError(
            f"{path} holds no state dict ({few(strangers) or 'empty'}): it has to be the file or one of "
            f"{', '.join(EMA_ENTRIES + RAW_ENTRIES)}"
        )
    return Checkpoint(_without_wrapper(weights), entry, metadata)


def _without_wrapper(state_dict: Mapping[str, Tensor]) -> StateDict:
    """`state_dict` without the prefixes that every one of its names carries."""
    weights = dict(state_dict)
    while weights and (prefix := next((p for p in WRAPPER_PREFIXES if all(k.startswith(p) for k in weights)), "")):
        weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def few(names: Iterable[str], count: int = 3) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    rest = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + rest


def save_checkpoint(
    model_or_state_dict: nn.Module | Mapping[str, Tensor],
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes weights to `.safetensors`, or as `{'state_dict': ...}` to `.pth`, `.pth.tar`, `.pt` or `.bin`.

    The latter is what timm and the authors' own `load_for_transfer_learning` read. `metadata` (text to text)
    goes along in both. A crash leaves the old file or the new one, never a half.

    Raises:
        ValueError: another suffix.
        FileNotFoundError: the folder does not exist.
    """
    path = Path(path)
    if path.suffix != ".safetensors" and path.suffix not in TORCH_SUFFIXES:
        raise ValueError(f"cannot write {path}: its name has to end with .safetensors, {', '.join(TORCH_SUFFIXES)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: create the folder {path.parent} first")
    source = model_or_state_dict
    tensors = source.state_dict() if isinstance(source, nn.Module) else source
    # Cloned, so that a view does not drag its whole storage into the file.
    weights = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
    if path.suffix == ".safetensors":
        data = safetensors.torch.save(weights, metadata=dict(metadata) if metadata else None)
        _write_atomically(path, lambda file: file.write(data))
    else:
        content = {"state_dict": weights} | ({"metadata": dict(metadata)} if metadata else {})
        _write_atomically(path, lambda file: torch.save(content, file))


def _write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """`write` fills a new file beside `path`, which then takes its place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
