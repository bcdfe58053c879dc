"""Training checkpoints, written in the background: the latest ones and the best one.

Twin: t2t_torch/training/checkpoints.py. Each holds the state after one step: weights, moving average, optimizer, step,
key and the position in the data.

Orbax's own `training.Checkpointer` is not used, as it does less than the tests of this file hold. Versions 0.12.0 and
0.12.8 read a flipped bit in silence, delete a step before they write it anew, and when killed while deleting leave half
a step under its name: tests/jax/training/test_orbax_checkpointer.py shows all three. To read back what was written, and
add digests, before it gets its name needs a hook, which is not the same in both (`file_options.temporary_path_class`,
then `atomicity`); and `BestN` needs metrics saved by Orbax, which checkpoints of earlier runs do not have.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import grain
import jax
import orbax.checkpoint.experimental.v1 as ocp

from t2t_common.workdir.checkpoints import UNFINISHED, CheckpointFolder
from t2t_common.workdir.folder import UnfitError
from t2t_config.text import reason
from t2t_jax.checkpoint import checkpoint_steps, load_metadata, start_writing, writing
from t2t_jax.parallel.processes import LostProcessError
from t2t_jax.training.step import TrainState
from t2t_jax.weights.digests import check_folder, check_readable
from t2t_jax.weights.orbax_paths import plain_path
from t2t_jax.weights.replace_folder import ASIDE, recover

DATA = "data"
"""Checkpoint item with the position in the data."""


class TrainingCheckpoints(CheckpointFolder):
    """Checkpoints of one run, written in the background, one at a time; a context manager that waits for them."""

    def __init__(self, workdir: str | Path, *, keep: int, keep_best: bool = False) -> None:
        """See `CheckpointFolder`."""
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        super().__init__(workdir, keep=keep, keep_best=keep_best, is_main_process=jax.process_index() == 0)

    def __enter__(self) -> TrainingCheckpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, LostProcessError):  # the pending checkpoint can never be completed
            self._writer.shutdown(wait=False)
            return
        try:
            self.wait()
        except ValueError as failure:
            if error is None:
                raise
            logging.getLogger(__name__).error("error: %s", failure)  # `error` is raised
        finally:
            self._writer.shutdown()

    def save(self, state: TrainState, iterator: grain.DatasetIterator, metadata: Mapping[str, Any]) -> None:
        """Start saving everything needed to resume the run, after waiting for the previous save.

        Returns when all arrays are copied to the host, so that the next step may reuse the state's memory. Write errors
        are raised by `wait`, by the next save or on exit from the context.

        Raises:
            ValueError: This checkpoint or the previous one cannot be written; earlier checkpoints are unchanged.
        """
        self.wait()
        step = int(state.step)
        items = {**_items(state), DATA: iterator}
        finish = start_writing(self._path(step), items, metadata, scratch=self._folder / f"{UNFINISHED}{step}")
        self._begin(step, metadata)
        self._pending = self._writer.submit(self._write, finish)

    def wait(self) -> None:
        """Wait until the pending checkpoint is on disk.

        Raises:
            ValueError: It cannot be written; earlier checkpoints are unchanged.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def restore(self, state: TrainState, iterator: grain.DatasetIterator) -> TrainState:
        """Return the state of the latest intact checkpoint, and set `iterator` to its position.

        Damaged checkpoints are renamed, and reported in `damaged.lines`.

        Args:
            state: Any state of the same run; defines shapes, dtypes and devices.
            iterator: Iterator over the same data with the same seed and batch size.

        Raises:
            ValueError: All checkpoints are damaged, or the latest belongs to another run; the message names it.
        """
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _items(state))

        def read(step: int) -> dict[str, Any]:
            folder = self._folder / str(step)
            has_digests = check_folder(folder) is not None
            position = read_position(folder)
            try:
                with plain_path(folder) as place:
                    saved = ocp.load_checkpointables(place, like)
                iterator.set_state(position)
            except Exception as error:
                if not has_digests:
                    check_readable(folder)
                raise UnfitError(
                    f"cannot continue from {folder} ({reason(error)}): choose another --workdir"
                ) from error
            return saved

        saved = self.damaged.latest(lambda: self.latest_step, read, None)
        assert saved is not None
        return TrainState(
            params={name: saved["model"][name] for name in state.params},
            buffers={name: saved["model"][name] for name in state.buffers},
            ema=saved.get("ema"),
            **saved["train"],
        )

    def _write(self, finish: Callable[[], None]) -> None:
        finish()
        if jax.process_index() == 0:
            with writing(self._folder):
                self._finish()

    def _steps(self) -> list[int]:
        return checkpoint_steps(self._folder)

    def _read_metadata(self, step: int) -> dict[str, Any]:
        return load_metadata(self._path(step))

    def _remove(self, step: int) -> None:
        # Rename first, so that a partially deleted folder is never taken for a checkpoint.
        doomed = self._folder / f"{UNFINISHED}{step}"
        self._path(step).rename(doomed)
        shutil.rmtree(doomed)

    def _sweep(self) -> None:
        with writing(self._folder):
            for leftover in self._folder.glob(f"{UNFINISHED}*"):
                if leftover.is_symlink():
                    leftover.unlink()
                else:
                    shutil.rmtree(leftover)
            for aside in self._folder.glob(f"{ASIDE}*"):
                recover(self._folder / aside.name.removeprefix(ASIDE))


def read_position(folder: Path) -> dict[str, Any]:
    """Return the position in the data saved in a checkpoint: the result of `get_state`, identical in all processes.

    Each process writes its own file, named by Grain, and Grain can read it only with the same number of processes.
    Positions count global batches, so any of the files is valid for any number of processes.

    Raises:
        ValueError: There is none, or they differ.
    """
    found = [json.loads(path.read_text()) for path in sorted((folder / DATA).glob("process_*-of-*.json"))]
    if not found or any(position != found[0] for position in found):
        raise ValueError("its positions in the data are missing, or not all alike")
    return dict(found[0])


def _items(state: TrainState) -> dict[str, Any]:
    """Return the items of a training checkpoint that hold arrays."""
    rest = {"opt_state": state.opt_state, "step": state.step, "key": state.key}
    return {"model": state.raw, "train": rest, **({} if state.ema is None else {"ema": state.ema})}
