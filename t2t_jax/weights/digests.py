"""Digests of arrays and of checkpoint folders, as defined in t2t_config/weights/digests.py.

A folder holds `sha256.json`: {"files": {path in the folder: digest}, "tensors": {item: {name: digest}}}. File digests
are computed from the bytes on disk, tensor digests from the arrays in memory at the time of saving.
Twin: t2t_torch/weights/digests.py.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp

from t2t_config.weights.digests import DamagedError, Digests, compare, of_file, of_tensor
from t2t_jax.weights.orbax_paths import plain_path

FILE = "sha256.json"


def array_digests(arrays: Mapping[str, Any]) -> dict[str, str]:
    """Return the digest of each array by name."""
    return {name: _of(name, np.asarray(array)) for name, array in arrays.items()}


def _of(name: str, array: np.ndarray) -> str:
    native = array.astype(array.dtype.newbyteorder("<"), copy=False)
    data = np.ascontiguousarray(native).reshape(-1).view(np.uint8)
    return of_tensor(name, array.dtype.name, array.shape, data)


def tree_digests(items: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Return the digests of the arrays of each item (a pytree), by their paths in it."""
    return {
        item: array_digests({_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)})
        for item, tree in items.items()
    }


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def write_digests(folder: Path, tensors: Mapping[str, Digests]) -> None:
    """Write the digests of the files and tensors of a complete checkpoint folder to it."""
    files = {name: of_file(path) for name, path in _files(folder).items()}
    (folder / FILE).write_text(json.dumps({"files": files, "tensors": tensors}), encoding="utf-8")


def check_folder(folder: Path, items: Collection[str] | None = None) -> Mapping[str, Any] | None:
    """Compare the files of a checkpoint folder with their digests.

    Args:
        folder: Checkpoint folder.
        items: Items whose files are checked, in addition to the folder's top-level files; None for all.

    Returns:
        Digests of the tensors by item; None for a folder without digests.

    Raises:
        DamagedError: A file is missing or was changed; the message names it, but not the folder.
    """
    if not (folder / FILE).is_file():
        return None
    try:
        saved = json.loads((folder / FILE).read_text(encoding="utf-8"))
        files, tensors = saved["files"], saved["tensors"]
        chosen = {name: digest for name, digest in files.items() if items is None or _is_of(name, items)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DamagedError(f"{FILE} is not as saved") from None
    # Ignore additional files; Orbax does not read them either.
    compare(chosen, {name: of_file(path) for name, path in _files(folder).items() if name in chosen})
    return tensors if isinstance(tensors, Mapping) else {}


def _is_of(name: str, items: Collection[str]) -> bool:
    item, slash, _ = name.partition("/")
    return not slash or item in items


def _files(folder: Path) -> dict[str, Path]:
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path for name, path in found.items() if name != FILE and not path.is_symlink()}


# --- Reading back -------------------------------------------------------------------------------------------


def copies_of(items: Mapping[str, Any]) -> dict[str, Any]:
    """Return copies of the checkpoint `items` that hold arrays; empty if several processes hold parts of the arrays."""
    if jax.process_count() > 1:
        return {}
    return {name: jax.tree.map(np.array, tree) for name, tree in items.items() if isinstance(tree, dict)}


def read_back(folder: Path, items: Mapping[str, Any]) -> None:
    """Compare the content of `folder` with the arrays of `items`, and write the digests of files and arrays to it.

    Raises:
        DamagedError: They differ.
    """
    tensors = tree_digests(items)
    for name, tree in items.items():
        try:
            compare(tensors[name], tree_digests({name: _load(folder, name, tree)})[name])
        except Exception as error:  # missing data raises almost anything
            raise DamagedError(f"read back, {name} is not what was written: {error}") from error
    write_digests(folder, tensors)


def check_readable(folder: Path) -> None:
    """Read all arrays of a checkpoint folder.

    Raises:
        DamagedError: Some cannot be read.
    """
    with plain_path(folder) as place:
        for item in ("model", "ema", "train"):
            if (folder / item).is_dir():
                try:
                    _load(place, item, ocp.metadata(place, checkpointable_name=item).metadata)
                except Exception as error:  # damaged files raise almost anything
                    raise DamagedError(f"{item}: {error}") from error


def _load(folder: Path, item: str, like: Any) -> Any:
    """Return an item as NumPy arrays, in the structure of `like`, whose leaves define shapes and dtypes."""
    return ocp.load_checkpointables(folder, {item: jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)})[item]
