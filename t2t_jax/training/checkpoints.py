"""The checkpoints of a run, written while it goes on: the latest ones and the best one.

Each is one bundle that belongs to one step: weights, average, optimiser, step, key and the position in the data.
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
"""The item of a checkpoint that holds the position in the data."""


class TrainingCheckpoints:
    """The checkpoints of one run, `workdir/checkpoints/STEP`; a context manager that ends when all is on disk.

    They are written in the background, one at a time. Only one process, or one group of processes that train
    together, may use a workdir (see `lock.py`): what an earlier one left half done is swept away here.
    """

    def __init__(self, workdir: str | Path, *, keep: int, keep_best: bool = False) -> None:
        """
        Args:
            workdir: folder of the run; created if need be.
            keep: how many of the latest checkpoints to keep.
            keep_best: keep the one with the highest `TOP1` in its metadata as well, and `checkpoints/best` as a link
                to it; of equals the earliest.

        Raises:
            ValueError: the folder cannot be written to.
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
        if isinstance(error, LostProcessError):  # what is being written will never be whole
            self._writer.shutdown(wait=False)
            return
        try:
            self.wait()
        except ValueError as failure:
            if error is None:
                raise
            logging.getLogger(__name__).error("error: %s", failure)  # `error` is the one that is raised
        finally:
            self._writer.shutdown()

    @property
    def latest_step(self) -> int | None:
        """Step of the latest checkpoint; None without one."""
        steps = [step for step in checkpoint_steps(self._folder) if step not in self.damaged.steps]
        return steps[-1] if steps else None

    @property
    def metadata(self) -> dict[str, Any]:
        """Metadata of the latest checkpoint that can be read; empty without one.

        Raises:
            ValueError: there are checkpoints, and all of them are damaged.
        """
        return self.damaged.latest(lambda: self.latest_step, lambda step: load_metadata(self._folder / str(step)), {})

    def is_best(self, top1: float) -> bool:
        """Whether a checkpoint of this accuracy would become the best one; never where the best is not kept."""
        return self._keeps_best and top1 > max(self._top1.values(), default=-math.inf)

    def save(self, state: TrainState, iterator: grain.DatasetIterator, metadata: Mapping[str, Any]) -> None:
        """Begins to save everything that the run needs to continue, once the save before is on disk.

        It returns when all is copied to the host: the next step may take the state's memory. `wait`, the next save
        and the end of the context tell how it went.

        Raises:
            ValueError: this one or the one before cannot be written; earlier checkpoints stay as they are.
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
        """Returns when what was saved is on disk.

        Raises:
            ValueError: it cannot be written; earlier checkpoints stay as they are.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def restore(self, state: TrainState, iterator: grain.DatasetIterator) -> TrainState:
        """The saved state of the latest checkpoint that is sound; sets `iterator` to its position.

        What is damaged is set aside, and `damaged.lines` says so.

        Args:
            state: any state of the same run; gives shapes, dtypes and devices.
            iterator: over the same data with the same seed and batch size.

        Raises:
            ValueError: all are damaged, or it is of another run; the message names it.
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
                # Not a checkpoint any more from the first moment on, so that none is ever there in part.
                doomed = self._folder / f"{SCRATCH}{step}"
                (self._folder / str(step)).rename(doomed)
                shutil.rmtree(doomed)
                self._top1.pop(step, None)

    def _sweep(self) -> None:
        for leftover in self._folder.glob(f"{SCRATCH}*"):  # of a run that was killed while it wrote
            if leftover.is_symlink():
                leftover.unlink()
            else:
                shutil.rmtree(leftover)
        for aside in self._folder.glob(f"{ASIDE}*"):
            recover(self._folder / aside.name.removeprefix(ASIDE))


def read_position(folder: Path) -> dict[str, Any]:
    """The position in the data that a checkpoint holds: what `get_state` gave, the same in every process.

    Each process writes its own, by the name that Grain gives it, and Grain reads that of as many processes alone; as
    positions count batches of all processes together, any will do, for any number of them.

    Raises:
        ValueError: there is none, or they are not all alike.
    """
    found = [json.loads(path.read_text()) for path in sorted((folder / DATA).glob("process_*-of-*.json"))]
    if not found or any(position != found[0] for position in found):
        raise ValueError("its positions in the data are missing, or not all alike")
    return dict(found[0])


def _items(state: TrainState) -> dict[str, Any]:
    """The parts of a training checkpoint that hold arrays."""
    rest = {"opt_state": state.opt_state, "step": state.step, "key": state.key}
    return {"model": state.raw, "train": rest, **({} if state.ema is None else {"ema": state.ema})}
