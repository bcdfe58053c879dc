"""Model folders by Orbax, and loading weights from any format; a run's checkpoints are in training_checkpoints.py.

A checkpoint folder holds one item per part, so that evaluation reads only the weights:
`model` (all arrays by dotted name), and for training `ema` (the same names), `train` (optimiser, step, key)
and `data` (position of the Grain iterator); plus JSON metadata that names the model. Everything
is written beside its final name and renamed, so a folder is there whole or not at all. A run's folder
(`--workdir`) keeps its checkpoints in `checkpoints/STEP`; `checkpoints/best` is a link to the best of them.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import shutil
import sys
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
from t2t_jax.weights.adapt import fit
from t2t_jax.weights.digests import array_digests, check_folder, copies_of, read_back
from t2t_jax.weights.orbax_paths import plain_path
from t2t_jax.weights.replace_folder import exchange, recover, set_aside
from t2t_jax.weights.torch_file import Weights, read_torch_file

BEST = "best"
SCRATCH = ".unfinished-"
LIMIT_SECONDS = 1200.0
"""For one checkpoint. Orbax has the same limit, but by the system's time, which may be set back."""
MAX_EXPANSION = 100
"""Orbax packs: arrays of zeros become nearly nothing."""


def save_model(
    path: str | Path,
    model_or_arrays: nnx.Module | Mapping[str, Any],
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Writes a model folder that `load_model_state`, `evaluate` and `--init-from` read; replaces an older one.

    Args:
        path: the folder to create.
        model_or_arrays: a module, or its arrays by dotted name; kept in their own dtypes, float64 too.
        metadata: JSON values. `evaluate` rebuilds the model from `model`, `img_size`, `in_chans`, `num_classes`, and
            prepares images by `mean`, `std`, `crop_pct`, `interpolation`.

    Raises:
        ValueError: `path` is something else than a checkpoint folder, or cannot be written.
    """
    path = Path(path).absolute()
    if path.exists() and not _is_checkpoint(path):
        raise ValueError(f"{path} exists and is no checkpoint folder: choose another name")
    ensure_writable(path.parent)
    if isinstance(model_or_arrays, nnx.Module):
        model_or_arrays = model_arrays(model_or_arrays)
    start_writing(
        path, {"model": {name: np.asarray(a) for name, a in unstack_arrays(model_or_arrays).items()}}, metadata or {}
    )()


def start_writing(
    path: Path, items: Mapping[str, Any], metadata: Mapping[str, Any], *, scratch: Path | None = None
) -> Callable[[], None]:
    """Copies `items` and begins to write them; the function returned waits until they are at `path`, in one step.

    When this returns, arrays of JAX may be donated and iterators move on: what is written belongs to the
    moment of the call. The function returned may run in another thread. Of several processes, each calls both.
    What was written is read back, and compared with the copy, before it goes to `path` (with several processes,
    none of which has all arrays, it is read for its digests only).

    Args:
        path: the folder to create; an older one is replaced.
        items: the parts of the checkpoint by name: arrays in any pytree, or an iterator of Grain.
        metadata: JSON values.
        scratch: folder, in that of `path`, to write in; the same for each process. None makes one for a single process.

    Raises:
        ValueError: this, and the function returned: cannot be written. Nothing of it is left, an older folder stays.
    """
    folder = scratch or path.parent / f"{SCRATCH}{uuid.uuid4().hex}"
    _silence_orbax()
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
    """Makes what fails inside a ValueError that names `path`; a full disk raises OSError, and others in tensorstore."""
    try:
        yield
    except TimeoutError as error:  # Orbax goes by the system's time
        remedy = "look after the disk and the system's time, then give the same command again"
        raise ValueError(f"cannot write {path} ({reason(error)}): {remedy}") from error
    except Exception as error:
        raise ValueError(f"cannot write {path} ({reason(error)}): free space, or choose another folder") from error


@contextlib.contextmanager
def _swept_on_failure(folder: Path, names: contextlib.ExitStack) -> Iterator[None]:
    try:
        yield
    except BaseException:
        names.close()
        for _ in range(10):  # Orbax's threads go on writing for a moment
            shutil.rmtree(folder, ignore_errors=True)
            threading.Event().wait(0.1)  # no error of its own, whatever happens to the system's time
        raise


@functools.cache
def _silence_orbax() -> None:
    """Drops what Orbax says from its threads: pages of traceback about an error that it raises as well.

    Some of it is logged; the rest comes from arrays that are written on when another has failed, and whose end nobody
    waits for any more.
    """
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    logging.getLogger("asyncio").addFilter(lambda record: "orbax" not in record.getMessage())
    show = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if unraisable.object is not None or str(unraisable.exc_value) != "Event loop is closed":
            show(unraisable)

    sys.unraisablehook = hook


def load_model_state(path: str | Path, *, use_ema: bool = True) -> Weights:
    """Weights of a model folder, of one training checkpoint, or of the latest checkpoint of a run's folder.

    A run with stacked blocks keeps them stacked; here they are one by one, as in any other file.

    Args:
        path: the folder.
        use_ema: prefer the moving average where there is one.

    Raises:
        FileNotFoundError: nothing at `path`.
        ValueError: no checkpoint in `path`, or a damaged one.
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
        raise ValueError(f"cannot read the weights in {folder} ({reason(error)}): get it again") from error
    verified = "" if digests is None else SHA256
    return Weights(unstack_arrays(arrays), metadata, item, item == "ema", "Orbax", verified)


def _check_expansion(folder: Path, content: int) -> None:
    """Raises ValueError if the arrays have far more bytes than their files: what is not there is read as zeros."""
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if content > max(ALWAYS, MAX_EXPANSION * size):
        raise ValueError(f"it unpacks to {content:,} bytes from {size:,}")


def load_metadata(path: str | Path) -> dict[str, Any]:
    """What the checkpoint at `path` says about itself: `model`, `img_size`, `in_chans`, `num_classes`, `mean`, ...

    Of a PyTorch file, the shapes tell some of it, and what `parity convert` noted in it the rest; keys may be absent.

    Raises:
        FileNotFoundError, ValueError: nothing at `path`, or not readable.
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
        raise ValueError(f"cannot read the metadata in {folder} ({reason(error)}): get it again") from error


def check_described(arguments: Mapping[str, Any], path: str | Path) -> None:
    """Raises ValueError if `create_model(**arguments)` fails, or is a model that what lies at `path` cannot hold."""
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
    """Fills `model` from an Orbax folder or a PyTorch file (.pth, .pth.tar, .safetensors, .pdparams, ...), in place.

    A position table for another grid is resized and a first layer for other channels adapted (see fit.py); the
    report says so. Everything else has to be there and to fit, the classifier too.

    Args:
        model: of the same name and number of classes as the weights.
        path: folder or file; of a run's folder the latest checkpoint, and `WORKDIR/checkpoints/best` is the one
            with the best accuracy. Pickled files need torch installed, .safetensors do not.
        use_ema: prefer the moving average where there is one.
        source_grid: the grid of the position table, needed only where that is for no square and `path` does
            not tell its img_size.

    Raises:
        FileNotFoundError: nothing at `path`.
        ValueError: not readable, or weights of another model; the message names some. `model` stays untouched.
    """
    return _load(model, path, use_ema, source_grid, fresh_classifiers=False)


def init_weights(
    model: nnx.Module, path: str | Path, *, use_ema: bool = True, source_grid: tuple[int, int] | None = None
) -> LoadReport:
    """Fills `model` from `path` to train it further: as `load_weights`, but a head for other classes stays fresh.

    Raises:
        FileNotFoundError, ValueError: as `load_weights`.
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
        fitted = fit(found.arrays, model, source_grid or _saved_grid(found), fresh_classifiers=fresh_classifiers)
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
    """The grid of the position table as far as the metadata tell it."""
    table, patch = found.arrays.get("pos_embed"), found.arrays.get("patch_embed.proj.kernel")
    if table is None or table.ndim != 3 or "img_size" not in found.metadata:
        return None
    positions = table.shape[1] - (2 if "dist_token" in found.arrays else 1)
    return saved_grid(found.metadata["img_size"], positions, None if patch is None else patch.shape[0])


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint folder that `path` means: itself, or the latest step of a run's folder.

    The best of a run is named by its link: `WORKDIR/checkpoints/best`.

    Raises:
        FileNotFoundError: nothing at `path`.
        ValueError: no checkpoint there.
    """
    path = Path(path).absolute()
    if path.is_symlink():
        # All that is read from now on is of one checkpoint, wherever a run points the link next.
        path = Path(os.path.realpath(path))
    if not path.exists() and _is_checkpoint(set_aside(path)):
        return set_aside(path)  # its successor is just taking its place, or died when it was
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}: check the path")
    for folder in (path / CHECKPOINTS, path):
        if folder.is_dir() and (steps := checkpoint_steps(folder)):
            return folder / str(steps[-1])
    if not path.is_dir() or not _is_checkpoint(path):
        raise ValueError(f"{path} holds no checkpoint: name a run's folder, a checkpoint folder or a .pth file")
    return path


def checkpoint_steps(folder: Path) -> list[int]:
    """The steps whose checkpoints are in `folder`, in order."""
    return sorted(int(p.name) for p in folder.iterdir() if is_step(p.name) and _is_checkpoint(p))


def _is_checkpoint(folder: Path) -> bool:
    # Orbax's own test takes any folder for a checkpoint of its earlier format, an empty one too.
    return (folder / "_CHECKPOINT_METADATA").is_file() and (folder / "model").is_dir()
