"""Save models as Orbax checkpoint folders; load weights of any format. Training checkpoints: training/checkpoints.py.

A checkpoint folder holds one item per part, so that evaluation reads only the weights:
`model` (all arrays by dotted name), and for training `ema` (the same names), `train` (optimizer, step, key)
and `data` (position of the Grain iterator), plus JSON metadata with the model name. Folders are written under a
temporary name next to the final one and then renamed, so a checkpoint is either complete or absent. A run's folder
(`--workdir`) keeps its checkpoints in `checkpoints/STEP`; `checkpoints/best` is a link to the best one.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
from flax import nnx

from t2t_common.io.files import ensure_writable
from t2t_common.workdir.checkpoints import UNFINISHED
from t2t_common.workdir.folder import CHECKPOINTS, is_step, latest_torch_file
from t2t_config.shapes import saved_grid
from t2t_config.text import reason
from t2t_config.weights.digests import SHA256, compare
from t2t_config.weights.hub import folder_metadata
from t2t_config.weights.load_report import LoadReport
from t2t_config.weights.metadata import take_preprocessing
from t2t_config.weights.untrusted import ALWAYS, check_size, check_table, making
from t2t_jax.models.registry import make_model
from t2t_jax.models.scan_blocks import unstack_arrays
from t2t_jax.state import load_arrays, model_arrays
from t2t_jax.weights.adapt import adapt_weights
from t2t_jax.weights.digests import array_digests, check_folder, copies_of, read_back
from t2t_jax.weights.orbax_paths import plain_path
from t2t_jax.weights.replace_folder import exchange, recover, set_aside
from t2t_jax.weights.torch_file import Weights, read_torch_file

LIMIT_SECONDS = 1200.0
"""Timeout for writing one checkpoint. Orbax has the same limit, but uses the system clock, which may be set back."""
MAX_EXPANSION = 100
"""Maximum ratio of array bytes to file bytes. Orbax compresses: arrays of zeros take almost no space on disk."""


def save_model(
    path: str | Path,
    model_or_arrays: nnx.Module | Mapping[str, Any],
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a model folder that `load_model_state`, `evaluate` and `--init-from` can read; replace an existing one.

    Args:
        path: Folder to create.
        model_or_arrays: Module, or its arrays by dotted name. Dtypes are preserved, including float64.
        metadata: JSON values. `evaluate` rebuilds the model from `model`, `img_size`, `in_chans`, `num_classes`, and
            preprocesses images with `mean`, `std`, `crop_pct`, `interpolation`.

    Raises:
        ValueError: `path` exists and is not a checkpoint folder, or cannot be written.
    """
    path = Path(path).absolute()
    if path.exists() and not _is_checkpoint(path):
        raise ValueError(f"{path} exists and is not a checkpoint folder: choose another name")
    ensure_writable(path.parent)
    if isinstance(model_or_arrays, nnx.Module):
        model_or_arrays = model_arrays(model_or_arrays)
    start_writing(
        path, {"model": {name: np.asarray(a) for name, a in unstack_arrays(model_or_arrays).items()}}, metadata or {}
    )()


def start_writing(
    path: Path, items: Mapping[str, Any], metadata: Mapping[str, Any], *, scratch: Path | None = None
) -> Callable[[], None]:
    """Copy `items`, start writing them, and return a function that waits and moves the result to `path` atomically.

    When this returns, JAX arrays may be donated and iterators advanced: the values at the time of the call are
    written. The returned function may run in another thread. With several processes, each process calls both.
    The written data is read back and compared with the copy before it is moved to `path` (with several processes,
    none of which has all arrays, it is read only to compute its digests).

    Args:
        path: Folder to create; an existing one is replaced.
        items: Parts of the checkpoint by name: pytrees of arrays, or a Grain iterator.
        metadata: JSON values.
        scratch: Folder to write in, next to `path` and the same for every process. None creates one (single process).

    Raises:
        ValueError: Writing failed (also raised by the returned function). No partial data remains, and an existing
            folder is kept.
    """
    folder = scratch or path.parent / f"{UNFINISHED}{uuid.uuid4().hex}"
    names = contextlib.ExitStack()
    with writing(path), _swept_on_failure(folder, names):
        recover(path)
        folder.mkdir(exist_ok=True)
        place, copies = names.enter_context(plain_path(folder)), copies_of(items)
        written = ocp.save_checkpointables_async(place / "new", dict(items), custom_metadata=dict(metadata))

    def finish() -> None:
        with writing(path), _swept_on_failure(folder, names):
            written.result(timeout=LIMIT_SECONDS)
            if jax.process_index() > 0:
                return
            read_back(place / "new", copies)
            names.close()
            if path.exists():
                exchange(folder / "new", path)
            else:
                (folder / "new").rename(path)
        shutil.rmtree(folder, ignore_errors=True)

    return finish


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Convert any exception into a ValueError that names `path`; tensorstore raises various types for a full disk."""
    try:
        yield
    except TimeoutError as error:  # Orbax uses the system clock
        remedy = "check the disk and the system clock, then run the same command again"
        raise ValueError(f"cannot write {path} ({reason(error)}): {remedy}") from error
    except Exception as error:
        raise ValueError(f"cannot write {path} ({reason(error)}): free space, or choose another folder") from error


@contextlib.contextmanager
def _swept_on_failure(folder: Path, names: contextlib.ExitStack) -> Iterator[None]:
    try:
        yield
    except BaseException:
        names.close()
        for _ in range(10):  # Orbax's threads keep writing for a moment
            shutil.rmtree(folder, ignore_errors=True)
            threading.Event().wait(0.1)  # raises no error, even if the system clock changes
        raise


def load_model_state(path: str | Path, *, use_ema: bool = True) -> Weights:
    """Return the weights of a model folder, a training checkpoint, or the latest checkpoint of a run's folder.

    Stacked blocks of a training checkpoint are returned unstacked, as in any other file.

    Args:
        path: Folder to load.
        use_ema: Whether to prefer the moving average, if present.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: `path` holds no checkpoint, or a damaged one.
    """
    folder = find_checkpoint(path)
    item = "ema" if use_ema and (folder / "ema").is_dir() else "model"
    try:
        digests = check_folder(folder, [item])
        with plain_path(folder) as place:
            saved = ocp.metadata(place, checkpointable_name=item)
            shapes = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in saved.metadata.items()}
            _check_expansion(folder, sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in shapes.values()))
            like = {name: np.empty(leaf.shape, leaf.dtype) for name, leaf in shapes.items()}
            arrays = ocp.load_checkpointables(place, {item: like})[item]
        if digests is not None and item in digests:
            compare(digests[item], array_digests(arrays))
        metadata = dict(saved.custom_metadata or {})
    except Exception as error:  # damaged files raise almost anything, from tensorstore upwards
        raise ValueError(f"cannot read the weights in {folder} ({reason(error)}): get another copy") from error
    verified = "" if digests is None else SHA256
    return Weights(unstack_arrays(arrays), metadata, item, item == "ema", "Orbax", verified)


def _check_expansion(folder: Path, content: int) -> None:
    """Raise ValueError if the arrays have far more bytes than their files: missing chunks are read as zeros."""
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if content > max(ALWAYS, MAX_EXPANSION * size):
        raise ValueError(f"it unpacks to {content:,} bytes from {size:,}")


def load_metadata(path: str | Path) -> dict[str, Any]:
    """Return the metadata of the checkpoint at `path`: `model`, `img_size`, `in_chans`, `num_classes`, `mean`, ...

    For a PyTorch file, they are inferred from tensor shapes and from the metadata that `parity convert` stored; keys
    may be absent.

    Raises:
        FileNotFoundError, ValueError: `path` does not exist or cannot be read.
    """
    file = latest_torch_file(path)
    if file.is_file():
        return {**read_torch_file(file).metadata, **folder_metadata(path, file)}
    folder = find_checkpoint(path)
    try:
        check_folder(folder, ["model"])
        with plain_path(folder) as place:
            return dict(ocp.metadata(place, checkpointable_name="model").custom_metadata or {})
    except Exception as error:  # damaged files raise almost anything
        raise ValueError(f"cannot read the metadata in {folder} ({reason(error)}): get another copy") from error


def check_model_arguments(arguments: Mapping[str, Any], path: str | Path) -> None:
    """Raise ValueError if `create_model(**arguments)` fails or its model is too large for the checkpoint at `path`."""
    path = latest_torch_file(path)
    files = [path] if path.is_file() else [file for file in find_checkpoint(path).rglob("*") if file.is_file()]
    with making(path):
        num_bytes = sum(file.stat().st_size for file in files)
        check_table(arguments, num_bytes)
        like: nnx.Module = nnx.eval_shape(lambda: make_model(**arguments))
        check_size(sum(4 * array.size for array in model_arrays(like).values()), num_bytes)


def load_weights(
    model: nnx.Module, path: str | Path, *, use_ema: bool = True, source_grid: tuple[int, int] | None = None
) -> LoadReport:
    """Load an Orbax folder or a PyTorch file (.pth, .pth.tar, .safetensors, .pdparams, ...) into `model`, in place.

    A position embedding for another grid is resized, and a first layer for another number of channels is adapted (see
    weights/adapt.py); the report lists both. All other weights, including the classifier, must be present and match.

    Args:
        model: Model with the same name and number of classes as the weights.
        path: Folder or file. For a run's folder, the latest checkpoint is loaded; `WORKDIR/checkpoints/best` is the
            one with the best accuracy. Pickled files require torch, .safetensors files do not.
        use_ema: Whether to prefer the moving average, if present.
        source_grid: Grid of the position embedding; needed only if it is not square and the metadata has no img_size.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: The file cannot be read, or has the weights of another model; the message names some of them.
            `model` is unchanged.
    """
    return _load(model, path, use_ema, source_grid, fresh_classifiers=False)


def init_weights(
    model: nnx.Module, path: str | Path, *, use_ema: bool = True, source_grid: tuple[int, int] | None = None
) -> LoadReport:
    """Load `path` into `model` for fine-tuning: like `load_weights`, but a classifier for other classes is skipped.

    Raises:
        FileNotFoundError, ValueError: See `load_weights`.
    """
    return _load(model, path, use_ema, source_grid, fresh_classifiers=True)


def _load(
    model: nnx.Module,
    path: str | Path,
    use_ema: bool,
    source_grid: tuple[int, int] | None,
    fresh_classifiers: bool,
) -> LoadReport:
    named, path = path, latest_torch_file(path)
    if path.is_file():
        found = read_torch_file(path, use_ema=use_ema)
        found = found._replace(metadata={**found.metadata, **folder_metadata(named, path)})
    else:
        found = load_model_state(path, use_ema=use_ema)
    try:
        fitted = adapt_weights(
            found.arrays, model, source_grid or _saved_grid(found), fresh_classifiers=fresh_classifiers
        )
        load_arrays(model, fitted.weights, fresh=fitted.missing)
    except ValueError as error:
        theirs = found.metadata.get("model")
        hint = f"; the file says that it is {theirs}" if theirs else ""
        raise ValueError(f"{path} does not fit this {type(model).__name__}: {error}{hint}") from None
    loaded = tuple(name for name in model_arrays(model) if name in fitted.weights)
    take_preprocessing(model, found.metadata, classes="head.kernel" in loaded)
    not_finite = tuple(name for name, array in fitted.weights.items() if not np.isfinite(np.asarray(array)).all())
    return LoadReport(
        str(path),
        found.entry,
        found.is_ema,
        found.layout,
        loaded,
        fitted.resized,
        fitted.left_out,
        fitted.missing,
        found.verified,
        found.prefix,
        found.ignored,
        not_finite,
    )


def _saved_grid(found: Weights) -> tuple[int, int] | None:
    """Return the grid of the position embedding, or None if the metadata do not determine it."""
    table, patch = found.arrays.get("pos_embed"), found.arrays.get("patch_embed.proj.kernel")
    if table is None or table.ndim != 3 or "img_size" not in found.metadata:
        return None
    positions = table.shape[1] - (2 if "dist_token" in found.arrays else 1)
    return saved_grid(found.metadata["img_size"], positions, None if patch is None else patch.shape[0])


def find_checkpoint(path: str | Path) -> Path:
    """Return the checkpoint folder for `path`: `path` itself, or the latest checkpoint of a run's folder.

    The link `WORKDIR/checkpoints/best` selects the best checkpoint of a run.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: `path` holds no checkpoint.
    """
    path = Path(path).absolute()
    if path.is_symlink():
        # Resolve the link once, so that all reads use the same checkpoint even if a run updates the link meanwhile.
        path = Path(os.path.realpath(path))
    if not path.exists() and _is_checkpoint(set_aside(path)):
        return set_aside(path)  # its replacement is in progress, or was interrupted
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}: check the path")
    for folder in (path / CHECKPOINTS, path):
        if folder.is_dir() and (steps := checkpoint_steps(folder)):
            return folder / str(steps[-1])
    if not path.is_dir() or not _is_checkpoint(path):
        raise ValueError(f"{path} holds no checkpoint: name a run's folder, a checkpoint folder or a .pth file")
    return path


def checkpoint_steps(folder: Path) -> list[int]:
    """Return the steps of the checkpoints in `folder`, in ascending order."""
    return sorted(int(p.name) for p in folder.iterdir() if is_step(p.name) and _is_checkpoint(p))


def _is_checkpoint(folder: Path) -> bool:
    # Orbax's own check accepts any folder, even an empty one, as a checkpoint of its earlier format.
    return (folder / "_CHECKPOINT_METADATA").is_file() and (folder / "model").is_dir()
