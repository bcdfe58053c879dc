"""Training checkpoints, written in the background: the latest ones and the best one.

Twin: t2t_torch/training/checkpoints.py. Each holds the state after one step: weights, moving average, optimizer, step,
key and the position in the data.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import grain
import jax
import orbax.checkpoint.experimental.v1 as ocp

from t2t_common.io.files import ensure_writable
from t2t_common.run.save_policy import TOP1
from t2t_common.workdir.folder import Damaged, UnfitError
from t2t_config.text import reason
from t2t_jax.checkpoint import (
    BEST,
    CHECKPOINTS,
    SCRATCH,
    checkpoint_steps,
    load_metadata,
    start_writing,
    writing,
)
from t2t_jax.parallel.processes import LostProcessError
from t2t_jax.training.step import TrainState
from t2t_jax.weights.digests import check_folder, check_readable
from t2t_jax.weights.orbax_paths import plain_path
from t2t_jax.weights.replace_folder import ASIDE, recover

DATA = "data"
"""Checkpoint item with the position in the data."""


class TrainingCheckpoints:
    """Checkpoints of one run, `workdir/checkpoints/STEP`; a context manager that waits for pending writes on exit.

    They are written in the background, one at a time. Only one process, or one group of processes that train
    together, may use a workdir (see t2t_common/workdir/lock.py); incomplete files of earlier runs are removed here.
    """

    def __init__(self, workdir: str | Path, *, keep: int, keep_best: bool = False) -> None:
        """
        Args:
            workdir: Folder of the run, created if needed.
            keep: Number of latest checkpoints to keep.
            keep_best: Whether to also keep the checkpoint with the highest `TOP1` in its metadata (the earliest in case
                of a tie), with `checkpoints/best` as a link to it.

        Raises:
            ValueError: The folder is not writable.
        """
        self._folder, self._keep = ensure_writable(Path(workdir) / CHECKPOINTS), keep
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._top1: dict[int, float] = {}
        self._keeps_best = keep_best
        self.damaged = Damaged(self._folder, renames=jax.process_index() == 0)
        if keep_best:
            for step in checkpoint_steps(self._folder):
                with self.damaged.noted(step):
                    self._note_top1(step, load_metadata(self._folder / str(step)))
        if jax.process_index() == 0:
            with writing(self._folder):
                self._sweep()
                if keep_best:
                    self._link_best()

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

    @property
    def latest_step(self) -> int | None:
        """Step of the latest checkpoint; None if there is none."""
        steps = [step for step in checkpoint_steps(self._folder) if step not in self.damaged.steps]
        return steps[-1] if steps else None

    @property
    def metadata(self) -> dict[str, Any]:
        """Metadata of the latest readable checkpoint; empty if there is no checkpoint.

        Raises:
            ValueError: All checkpoints are damaged.
        """
        return self.damaged.latest(lambda: self.latest_step, lambda step: load_metadata(self._folder / str(step)), {})

    def is_best(self, top1: float) -> bool:
        """Return whether a checkpoint with this accuracy would become the best one; False if the best is not kept."""
        return self._keeps_best and top1 > max(self._top1.values(), default=-math.inf)

    def save(self, state: TrainState, iterator: grain.DatasetIterator, metadata: Mapping[str, Any]) -> None:
        """Start saving everything needed to resume the run, after waiting for the previous save.

        Returns when all arrays are copied to the host, so that the next step may reuse the state's memory. Write errors
        are raised by `wait`, by the next save or on exit from the context.

        Raises:
            ValueError: This checkpoint or the previous one cannot be written; earlier checkpoints are unchanged.
        """
        self.wait()
        step = int(state.step)
        self.damaged.steps.pop(step, None)
        items = {**_items(state), DATA: iterator}
        finish = start_writing(self._folder / str(step), items, metadata, scratch=self._folder / f"{SCRATCH}{step}")
        if self._keeps_best:
            self._note_top1(step, metadata)
        self._pending = self._writer.submit(self._finish, finish)

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

    def _finish(self, finish: Callable[[], None]) -> None:
        finish()
        if jax.process_index() == 0:
            with writing(self._folder):
                self._link_best()
                self._forget_old()

    def _note_top1(self, step: int, metadata: Mapping[str, Any]) -> None:
        if isinstance(top1 := metadata.get(TOP1), int | float):
            self._top1[step] = top1

    @property
    def _best_step(self) -> int | None:
        return min(self._top1, key=lambda step: (-self._top1[step], step), default=None)

    def _link_best(self) -> None:
        link, successor = self._folder / BEST, self._folder / f"{SCRATCH}{BEST}"
        if self._best_step is None:
            link.unlink(missing_ok=True)
        else:
            successor.symlink_to(str(self._best_step))
            successor.replace(link)

    def _forget_old(self) -> None:
        for step in checkpoint_steps(self._folder)[: -self._keep]:
            if step != self._best_step:
                # Rename first, so that a partially deleted folder is never taken for a checkpoint.
                doomed = self._folder / f"{SCRATCH}{step}"
                (self._folder / str(step)).rename(doomed)
                shutil.rmtree(doomed)
                self._top1.pop(step, None)

    def _sweep(self) -> None:
        for leftover in self._folder.glob(f"{SCRATCH}*"):  # of a run that was killed while writing
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
