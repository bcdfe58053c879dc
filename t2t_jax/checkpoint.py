"""Everything that touches Orbax: model folders, training checkpoints, and loading weights from any format.

A checkpoint folder holds one item per part, so that evaluation reads only the weights:
`model` (all arrays by dotted name), and for training `ema` (the same names), `train` (optimiser, step, key)
and `data` (position of the Grain iterator); plus JSON metadata that names the model. Everything
is written beside its final name and renamed, so a folder is there whole or not at all. A run's folder
(`--workdir`) keeps its checkpoints in `checkpoints/STEP`.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
from flax import nnx

from t2t_config.load_report import LoadReport
from t2t_config.shapes import saved_grid
from t2t_jax.fit import fit
from t2t_jax.replace import ASIDE, exchange, recover, set_aside
from t2t_jax.state import load_arrays, model_arrays
from t2t_jax.step import TrainState
from t2t_jax.torch_file import Weights, read_torch_file

CHECKPOINTS = "checkpoints"
SCRATCH = ".unfinished-"


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
    _write_folder(path, {"model": {name: np.asarray(a) for name, a in model_or_arrays.items()}}, metadata or {})


def _write_folder(path: Path, items: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """Writes a checkpoint in a scratch folder beside `path`, then puts it in its place in one step."""
    try:
        recover(path)
        with _scratch_folder(path.parent) as scratch, _no_log():
            ocp.save_checkpointables(scratch / "new", dict(items), custom_metadata=dict(metadata))
            if path.exists():
                exchange(scratch / "new", path)
            else:
                (scratch / "new").rename(path)
    except Exception as error:  # a full disk raises OSError here, ValueError from tensorstore
        raise ValueError(f"cannot write {path} ({_reason(error)}): free space, or choose another folder") from error


@contextlib.contextmanager
def _scratch_folder(parent: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir=parent, prefix=SCRATCH))
    try:
        yield folder
    except BaseException:
        for _ in range(10):  # Orbax's threads go on writing for a moment
            shutil.rmtree(folder, ignore_errors=True)
            time.sleep(0.1)
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _no_log() -> Iterator[None]:
    """Silences what Orbax logs from its threads: pages of traceback about an error that it raises as well."""
    logger = logging.getLogger("absl")
    was_disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = was_disabled


def _reason(error: Exception) -> str:
    """The first line of what `error` says; its middle, mostly paths, is left out when it is long."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return line if len(line) <= 160 else f"{line[:60]} ... {line[-90:]}"


def load_model_state(path: str | Path, *, use_ema: bool = True) -> Weights:
    """Weights of a model folder, of one training checkpoint, or of the latest checkpoint of a run's folder.

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
        saved = ocp.metadata(folder, checkpointable_name=item)
        like = {name: np.empty(leaf.shape, leaf.dtype) for name, leaf in saved.metadata.items()}
        arrays = ocp.load_checkpointables(folder, {item: like})[item]
    except Exception as error:  # damaged files raise almost anything, from tensorstore upwards
        raise ValueError(f"cannot read the weights in {folder} ({_reason(error)}): get it again") from error
    return Weights(arrays, dict(saved.custom_metadata or {}), item, item == "ema", "Orbax")


def load_metadata(path: str | Path) -> dict[str, Any]:
    """What the checkpoint at `path` says about itself: `model`, `img_size`, `in_chans`, `num_classes`, `mean`, ...

    Of a PyTorch file, the shapes tell some of it, and what `parity convert` noted in it the rest; keys may be absent.

    Raises:
        FileNotFoundError, ValueError: nothing at `path`, or not readable.
    """
    if Path(path).is_file():
        return read_torch_file(path).metadata
    folder = find_checkpoint(path)
    try:
        return dict(ocp.metadata(folder, checkpointable_name="model").custom_metadata or {})
    except Exception as error:  # damaged files raise almost anything
        raise ValueError(f"cannot read the metadata in {folder} ({_reason(error)}): get it again") from error


def load_weights(
    model: nnx.Module, path: str | Path, *, use_ema: bool = True, source_grid: tuple[int, int] | None = None
) -> LoadReport:
    """Fills `model` from an Orbax folder or a PyTorch file (.pth, .pth.tar, .safetensors, .pdparams, ...), in place.

    A position table for another grid is resized and a first layer for other channels adapted (see fit.py); the
    report says so. Everything else has to be there and to fit, the classifier too.

    Args:
        model: of the same name and number of classes as the weights.
        path: folder or file. Pickled files need torch installed, .safetensors do not.
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
    found = read_torch_file(path, use_ema=use_ema) if Path(path).is_file() else load_model_state(path, use_ema=use_ema)
    try:
        fitted = fit(found.arrays, model, source_grid or _saved_grid(found), fresh_classifiers=fresh_classifiers)
        load_arrays(model, fitted.weights, fresh=fitted.missing)
    except ValueError as error:
        theirs = found.metadata.get("model")
        hint = f"; the file says that it is {theirs}" if theirs else ""
        raise ValueError(f"{path} does not fit this {type(model).__name__}: {error}{hint}") from None
    loaded = tuple(name for name in model_arrays(model) if name in fitted.weights)
    return LoadReport(
        str(path), found.entry, found.is_ema, found.layout, loaded, fitted.resized, fitted.left_out, fitted.missing
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

    Raises:
        FileNotFoundError: nothing at `path`.
        ValueError: no checkpoint there.
    """
    path = Path(path).absolute()
    if not path.exists() and _is_checkpoint(set_aside(path)):
        return set_aside(path)  # its successor is just taking its place, or died when it was
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}: check the path")
    for folder in (path / CHECKPOINTS, path):
        if folder.is_dir() and (steps := _steps(folder)):
            return folder / str(steps[-1])
    if not path.is_dir() or not _is_checkpoint(path):
        raise ValueError(f"{path} holds no checkpoint: name a run's folder, a checkpoint folder or a .pth file")
    return path


def _steps(folder: Path) -> list[int]:
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit() and _is_checkpoint(p))


def _is_checkpoint(folder: Path) -> bool:
    # Orbax's own test takes any folder for a checkpoint of its earlier format, an empty one too.
    return (folder / "_CHECKPOINT_METADATA").is_file() and (folder / "model").is_dir()


def ensure_writable(folder: str | Path) -> Path:
    """Creates `folder` if need be and proves that files can be written there.

    Raises:
        ValueError: they cannot; the message says why.
    """
    folder = Path(folder).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise ValueError(f"cannot write to {folder} ({error.strerror}): choose another folder") from error


class TrainingCheckpoints:
    """The checkpoints of one run: `workdir/checkpoints/STEP`, the latest `keep` of them."""

    def __init__(self, workdir: str | Path, *, keep: int) -> None:
        self._folder, self._keep = ensure_writable(Path(workdir) / CHECKPOINTS), keep
        for leftover in self._folder.glob(f"{SCRATCH}*"):  # of a run that was killed while it wrote
            shutil.rmtree(leftover)
        for aside in self._folder.glob(f"{ASIDE}*"):
            recover(self._folder / aside.name.removeprefix(ASIDE))

    @property
    def latest_step(self) -> int | None:
        """Step of the latest checkpoint; None without one."""
        steps = _steps(self._folder)
        return steps[-1] if steps else None

    @property
    def metadata(self) -> dict[str, Any]:
        """Metadata of the latest checkpoint; empty without one."""
        return {} if self.latest_step is None else load_metadata(self._folder)

    def save(self, state: TrainState, iterator: grain.DatasetIterator, metadata: Mapping[str, Any]) -> None:
        """Saves everything that the run needs to continue; returns when it is on disk, as the step reuses the memory.

        Raises:
            ValueError: it cannot be written; earlier checkpoints stay as they are.
        """
        _write_folder(self._folder / str(int(state.step)), {**_items(state), "data": iterator}, metadata)
        for step in _steps(self._folder)[: -self._keep]:
            shutil.rmtree(self._folder / str(step))

    def restore(self, state: TrainState, iterator: grain.DatasetIterator) -> TrainState:
        """The saved state of the latest checkpoint; sets `iterator` to its position.

        Args:
            state: any state of the same run; gives shapes, dtypes and devices.
            iterator: over the same data with the same seed and batch size.

        Raises:
            ValueError: the checkpoint is damaged; the message names it.
        """
        folder = find_checkpoint(self._folder)
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _items(state))
        try:
            saved = ocp.load_checkpointables(folder, {**like, "data": iterator})
        except Exception as error:  # damaged files raise almost anything
            raise ValueError(
                f"cannot read {folder} ({_reason(error)}): delete it to continue from the checkpoint before"
            ) from error
        return TrainState(
            params={name: saved["model"][name] for name in state.params},
            buffers={name: saved["model"][name] for name in state.buffers},
            ema=saved.get("ema"),
            **saved["train"],
        )


def _items(state: TrainState) -> dict[str, Any]:
    """The parts of a training checkpoint that hold arrays."""
    rest = {"opt_state": state.opt_state, "step": state.step, "key": state.key}
    return {"model": state.raw, "train": rest, **({} if state.ema is None else {"ema": state.ema})}
