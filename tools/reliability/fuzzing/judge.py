"""What must not happen in a case: another error than documented, code that is run, files written anywhere else."""

from __future__ import annotations

import argparse
import fnmatch
import os
import sys
import unicodedata
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import FunctionType
from typing import Any

OURS = ("t2t_common", "t2t_config", "t2t_jax", "t2t_parity", "t2t_torch", "parity")
LONGEST_MESSAGE = 1000

RUNS_CODE = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "pty.spawn", "subprocess.Popen")
WRITES = (
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.symlink",
    "os.link",
    "os.truncate",
    "os.chmod",
    "os.chown",
)


SHARED = ("t2t_torch.weights.safe_unpickle", "t2t_common.data.readers.torch_tensor", "torch._utils")
"""Modules whose classes and functions a pickle can name."""


class ForbiddenError(BaseException):
    """What a case did is stopped here; no `except Exception` hides it."""


def complaint_of(error: BaseException, names: Collection[str]) -> str | None:
    """Why `error` is not what a user should see of a file; None if it is: one line, of a documented type, that names
    the file or one of `names`."""
    kind = type(error)
    text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
    documented = kind in (ValueError, FileNotFoundError) or kind.__module__.split(".")[0] in OURS
    documented |= isinstance(error, OSError) and error.filename is not None
    if not documented or not isinstance(error, ValueError | OSError):
        return f"{kind.__name__} gets out"
    if not any(name in text for name in names):
        return "the message names no file"
    if any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in text):
        return "the message has line breaks or control characters"
    return "the message has no end" if len(text) > LONGEST_MESSAGE else None


class Watch:
    """Notes from now on what the process does that reading a file never needs (audit hooks cannot be taken away)."""

    def __init__(self, folder: Path) -> None:
        """`folder` is the only place where anything may be written."""
        self._folder, self.found, self.active = os.path.realpath(folder), list[str](), False
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event in RUNS_CODE:
            self.found.append(f"it would run {str(arguments[:2])[:100]}")
            raise ForbiddenError(event)
        if event == "socket.connect" and not str(arguments[1]).startswith("('127.0.0.1'"):
            self.found.append(f"it would connect to {str(arguments[1])[:100]}")
            raise ForbiddenError(event)
        flags = arguments[2] if event == "open" and isinstance(arguments[2], int) else 0
        if event in WRITES or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            for path in arguments[:2] if event in ("os.rename", "os.symlink", "os.link") else arguments[:1]:
                if isinstance(path, str | bytes | os.PathLike) and not self._inside(os.fsdecode(path)):
                    self.found.append(f"it would write {os.fsdecode(path)[:100]}")
                    raise ForbiddenError(event)

    def _inside(self, path: str) -> bool:
        place = os.path.realpath(os.path.dirname(os.path.abspath(path)))
        return place == self._folder or place.startswith(self._folder + os.sep) or path == os.devnull


def process_state() -> dict[str, Any]:
    """What a file could change for everybody in the process: attributes of classes and functions, lists of PyTorch."""
    shared: dict[str, Any] = {"Namespace": argparse.Namespace, "OrderedDict": OrderedDict}
    for module in filter(sys.modules.get, SHARED):
        shared |= {f"{module}.{name}": value for name, value in vars(sys.modules[module]).items()}
    found: dict[str, Any] = {}
    for name, value in shared.items():
        if isinstance(value, type | FunctionType):
            found[name] = {key: id(item) for key, item in vars(value).items()}
            found[f"{name}()"] = getattr(value, "__defaults__", None)
        elif isinstance(value, list):
            found[name] = len(value)
    return found


def snapshot(folder: Path, names: Iterable[str]) -> dict[str, tuple[int, int, int]]:
    """Relative path -> kind, size, time of everything in the folders `names` of `folder`, links not followed."""
    found, todo = {}, [f"{folder}/{name}" for name in names]
    start = len(str(folder)) + 1
    while todo:
        for entry in os.scandir(todo.pop()):
            facts = entry.stat(follow_symlinks=False)
            is_folder = entry.is_dir(follow_symlinks=False)
            if is_folder:
                todo.append(entry.path)
            found[entry.path[start:]] = (
                (facts.st_mode, 0, 0) if is_folder else (facts.st_mode, facts.st_size, facts.st_mtime_ns)
            )
    return found


def changed(before: Mapping[str, Any], after: Mapping[str, Any], allowed: Collection[str]) -> list[str]:
    """Paths that were written or have gone, but for those that match one of the patterns `allowed`."""
    paths = [path for path in {**before, **after} if before.get(path) != after.get(path)]
    return sorted(path for path in paths if not any(fnmatch.fnmatch(path, pattern) for pattern in allowed))
