"""Training checkpoints: the latest ones and the best one. Twin: t2t_jax/training/checkpoints.py.

Each is one file, `workdir/checkpoints/STEP.pth`, with the state after one step: weights, moving average, optimizer,
schedule, step and the position in the data. `load_checkpoint` reads its weights as from any other file;
`checkpoints/best.pth` is a link to the best one.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from t2t_common.data.iterator import BatchIterator
from t2t_common.io.files import ensure_writable, replace_file
from t2t_common.run.save_policy import TOP1
from t2t_common.workdir.folder import CHECKPOINTS, SUFFIX, Damaged, torch_steps
from t2t_config.text import first_line
from t2t_config.weights.metadata import from_text, to_text
from t2t_torch.checkpoint_file import check_written
from t2t_torch.training.processes import process_index
from t2t_torch.training.step import TrainState
from t2t_torch.weights.digests import check_content, torch_bytes
from t2t_torch.weights.safe_unpickle import read_pickle

BEST = f"best{SUFFIX}"


class TrainingCheckpoints:
    """Checkpoints of one run; a context manager, like its twin.

    Only one process, or one group of processes that train together, may use a workdir (see t2t_common/workdir/lock.py);
    incomplete files of earlier runs are removed here. Only the first process writes.
    """

    def __init__(self, workdir: str | Path, *, keep: int, keep_best: bool = False) -> None:
        """
        Args:
            workdir: Folder of the run, created if needed.
            keep: Number of latest checkpoints to keep.
            keep_best: Whether to also keep the checkpoint with the highest `TOP1` in its metadata (the earliest in case
                of a tie), with `checkpoints/best.pth` as a link to it.

        Raises:
            ValueError: The folder is not writable.
        """
        self._folder, self._keep, self._keeps_best = ensure_writable(Path(workdir) / CHECKPOINTS), keep, keep_best
        self._top1: dict[int, float] = {}
        self.damaged = Damaged(self._folder, SUFFIX, renames=process_index() == 0)
        if keep_best:
            for step in torch_steps(self._folder):
                with self.damaged.noted(step):
                    self._note_top1(step, _metadata(self._path(step)))
        if process_index() == 0:
            for leftover in self._folder.glob(f".*{SUFFIX}*"):  # of a run that was killed while writing
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            if keep_best:
                self._link_best()

    def __enter__(self) -> TrainingCheckpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    @property
    def latest_step(self) -> int | None:
        """Step of the latest checkpoint; None if there is none."""
        steps = [step for step in torch_steps(self._folder) if step not in self.damaged.steps]
        return steps[-1] if steps else None

    @property
    def metadata(self) -> dict[str, Any]:
        """Metadata of the latest readable checkpoint; empty if there is no checkpoint.

        Raises:
            ValueError: All checkpoints are damaged.
        """
        return self.damaged.latest(lambda: self.latest_step, lambda step: _metadata(self._path(step)), {})

    def is_best(self, top1: float) -> bool:
        """Return whether a checkpoint with this accuracy would become the best one; False if the best is not kept."""
        return self._keeps_best and top1 > max(self._top1.values(), default=-math.inf)

    def save(self, state: TrainState, iterator: BatchIterator, metadata: Mapping[str, Any]) -> None:
        """Save everything needed to resume the run.

        Raises:
            ValueError: It cannot be written; earlier checkpoints are unchanged.
        """
        self.damaged.steps.pop(state.step, None)
        if self._keeps_best:
            self._note_top1(state.step, metadata)
        if process_index() > 0:
            return
        bundle = {
            "state_dict": state.raw,
            **({} if state.ema is None else {"state_dict_ema": state.ema.state}),
            "optimizer": state.optimizer.state_dict(),
            "scheduler": state.scheduler.state_dict(),
            "step": state.step,
            "data": iterator.get_state(),
            "metadata": to_text(metadata),
        }
        path = self._path(state.step)
        with replace_file(path) as temporary:
            temporary.write_bytes(torch_bytes(bundle))
            check_written(temporary, path, lambda: check_content(temporary, read_pickle(temporary)))
        self._link_best()
        self._forget_old()

    def wait(self) -> None:
        """Do nothing: the checkpoint is on disk when `save` returns."""

    def restore(self, state: TrainState, iterator: BatchIterator) -> TrainState:
        """Load the latest intact checkpoint into `state` and `iterator`, both of the same run; return `state`.

        Damaged checkpoints are renamed, and reported in `damaged.lines`.

        Raises:
            ValueError: All checkpoints are damaged, or the latest belongs to another run; the message names it.
        """

        saved = self.damaged.latest(lambda: self.latest_step, lambda step: _read(self._path(step)), None)
        assert saved is not None
        try:
            state.model.load_state_dict(saved["state_dict"])
            state.optimizer.load_state_dict(saved["optimizer"])
            state.scheduler.load_state_dict(saved["scheduler"])
            if state.ema is not None:
                for name, value in state.ema.state.items():
                    value.copy_(saved["state_dict_ema"][name])
            state.step = saved["step"]
            iterator.set_state(saved["data"])
            return state
        except Exception as error:  # intact, but of another run
            path = self._path(self.latest_step or 0)
            raise ValueError(f"cannot continue from {path} ({first_line(error)}): choose another --workdir") from error

    def _path(self, step: int) -> Path:
        return self._folder / f"{step}{SUFFIX}"

    def _note_top1(self, step: int, metadata: Mapping[str, Any]) -> None:
        if isinstance(top1 := metadata.get(TOP1), int | float):
            self._top1[step] = top1

    @property
    def _best_step(self) -> int | None:
        return min(self._top1, key=lambda step: (-self._top1[step], step), default=None)

    def _link_best(self) -> None:
        link, successor = self._folder / BEST, self._folder / f".{BEST}"
        if self._best_step is None:
            link.unlink(missing_ok=True)
        else:
            successor.unlink(missing_ok=True)
            successor.symlink_to(self._path(self._best_step).name)
            successor.replace(link)

    def _forget_old(self) -> None:
        for step in torch_steps(self._folder)[: -self._keep]:
            if step != self._best_step:
                self._path(step).unlink()
                self._top1.pop(step, None)


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint, verified against its digests if it has any."""
    saved = read_pickle(path)
    check_content(path, saved)
    return saved


def _metadata(path: Path) -> dict[str, Any]:
    """Return the metadata of a checkpoint of `TrainingCheckpoints`, without reading its tensors."""
    saved = read_pickle(path, mapped=True)
    check_content(path, saved, {"metadata"})
    if not isinstance(saved, Mapping) or not isinstance(saved.get("metadata"), Mapping):
        raise ValueError("is no checkpoint of a run: no metadata in it")
    return from_text(saved["metadata"])
