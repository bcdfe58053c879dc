"""Checkpoints of a run in `WORKDIR/checkpoints`, in the format of either framework: the latest ones and the best one.

Each framework's `TrainingCheckpoints` adds how one checkpoint is written, read and removed.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t2t_common.io.files import ensure_writable
from t2t_common.workdir.folder import CHECKPOINTS, Damaged

BEST = "best"

TOP1 = "top1"
"""Checkpoint metadata key: top-1 accuracy of the evaluation at its step; absent if there was no evaluation."""

UNFINISHED = ".unfinished-"
"""Prefix of what is being written or removed; what a killed run left of it is removed."""


class CheckpointFolder(abc.ABC):
    """Checkpoints of one run, `workdir/checkpoints/STEP` plus a suffix; each holds the state after one step.

    Only one process, or one group of processes that train together, may use a workdir (see t2t_common/workdir/lock.py);
    incomplete files of earlier runs are removed here.
    """

    suffix = ""
    """File name suffix after the step."""

    def __init__(self, workdir: str | Path, *, keep: int, keep_best: bool, is_main_process: bool) -> None:
        """
        Args:
            workdir: Folder of the run, created if needed.
            keep: Number of latest checkpoints to keep.
            keep_best: Whether to also keep the checkpoint with the highest `TOP1` in its metadata (the earliest in case
                of a tie), with a link `checkpoints/best` to it.
            is_main_process: Whether this is the first process, the only one that changes the folder here.

        Raises:
            ValueError: The folder is not writable.
        """
        self._folder, self._keep, self._keeps_best = ensure_writable(Path(workdir) / CHECKPOINTS), keep, keep_best
        self._top1: dict[int, float] = {}
        self.damaged = Damaged(self._folder, self.suffix, renames=is_main_process)
        if keep_best:
            for step in self._steps():
                with self.damaged.noted(step):
                    self._note_top1(step, self._read_metadata(step))
        if is_main_process:
            self._sweep()
            if keep_best:
                self._link_best()

    @abc.abstractmethod
    def _steps(self) -> list[int]:
        """Return the steps of all checkpoints in the folder, in ascending order."""

    @abc.abstractmethod
    def _read_metadata(self, step: int) -> dict[str, Any]:
        """Return the metadata of a checkpoint. Raises ValueError if it is damaged."""

    @abc.abstractmethod
    def _remove(self, step: int) -> None:
        """Remove a checkpoint so that, at any moment, it is either complete or none."""

    @abc.abstractmethod
    def _sweep(self) -> None:
        """Remove what a run that was killed while writing has left."""

    @property
    def latest_step(self) -> int | None:
        """Step of the latest checkpoint that is not known to be damaged; None if there is none."""
        return max((step for step in self._steps() if step not in self.damaged.steps), default=None)

    @property
    def metadata(self) -> dict[str, Any]:
        """Metadata of the latest readable checkpoint; empty if there is no checkpoint.

        Raises:
            ValueError: All checkpoints are damaged.
        """
        return self.damaged.latest(lambda: self.latest_step, self._read_metadata, {})

    def is_best(self, top1: float) -> bool:
        """Return whether a checkpoint with this accuracy would become the best one; False if the best is not kept."""
        return self._keeps_best and top1 > max(self._top1.values(), default=-math.inf)

    def _path(self, step: int) -> Path:
        return self._folder / f"{step}{self.suffix}"

    def _begin(self, step: int, metadata: Mapping[str, Any]) -> None:
        """Note that the checkpoint of `step` is written, with these metadata."""
        self.damaged.steps.pop(step, None)
        if self._keeps_best:
            self._note_top1(step, metadata)

    def _finish(self) -> None:
        """After a checkpoint is complete: link the best one and remove those that are not kept."""
        self._link_best()
        for step in self._steps()[: -self._keep]:
            if step != self._best_step:
                self._remove(step)
                self._top1.pop(step, None)

    def _note_top1(self, step: int, metadata: Mapping[str, Any]) -> None:
        if isinstance(top1 := metadata.get(TOP1), int | float):
            self._top1[step] = top1

    @property
    def _best_step(self) -> int | None:
        return min(self._top1, key=lambda step: (-self._top1[step], step), default=None)

    def _link_best(self) -> None:
        link, successor = (self._folder / f"{prefix}{BEST}{self.suffix}" for prefix in ("", UNFINISHED))
        if self._best_step is None:
            link.unlink(missing_ok=True)
        else:
            successor.unlink(missing_ok=True)
            successor.symlink_to(self._path(self._best_step).name)
            successor.replace(link)
