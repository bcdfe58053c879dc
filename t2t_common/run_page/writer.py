"""Update the report page during a run every few seconds, with negligible overhead."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from t2t_common.run_page import samples
from t2t_common.run_page.confusion import sparse
from t2t_common.run_page.page import PAGE_FILE, write_page_of
from t2t_common.workdir.errors import TrainingDivergedError
from t2t_common.workdir.interrupt import RunInterruptedError
from t2t_common.workdir.lock import LostWorkdirError
from t2t_common.workdir.record import Record, Status, now
from t2t_common.workdir.writers import METRICS_FILE, read_lines

SECONDS = 10.0
"""Minimum time in seconds between two writes of the page."""
SHARE = 0.01
"""Maximum fraction of the run's time spent on writing the page."""


class RunPage:
    """Writer (see t2t_common/workdir/writers.py) of the report page.

    A failure to write the page is reported once and does not stop the run.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        first_step: int,
        last_step: int,
        batch_size: int,
        config: Mapping[str, Any],
        devices: str = "",
        say: Callable[[str], None] = print,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            workdir: Folder of the run; its `metrics.jsonl` must belong to this run.
            first_step: Steps already completed.
            last_step: Total number of steps of the run.
            batch_size: Global batch size, over all processes.
            config: Configuration of the run: the metadata of its checkpoints.
            devices: Description of the devices.
            say: Receives error messages.
            clock: Returns the time in seconds.
        """
        self._workdir, self._say, self._clock = workdir, say, clock
        self._lines = read_lines(workdir / METRICS_FILE)
        found = Record.read(workdir) if first_step else None  # at step 0, the record is from another run
        self._record = found or Record()
        self._record.last_step, self._record.batch_size, self._record.config = last_step, batch_size, dict(config)
        self._start = self._record.begin(first_step, devices)
        self._complained = False
        self._write()

    def write(self, values: Mapping[str, Any]) -> None:
        self._lines.append(dict(values))
        self._write_if_due()

    def show_samples(self, images_BxHxWxC: np.ndarray, labels: np.ndarray, *, step: int) -> None:
        """Show normalized images of the batch of `step` with their labels (B,) or targets (B, num_classes)."""
        config = self._record.config
        if "mean" not in config:
            return
        images = samples.encode(
            images_BxHxWxC[: samples.COUNT],
            labels[: samples.COUNT],
            mean=config["mean"],
            std=config["std"],
            smoothing=self._record.recipe.get("label_smoothing", 0.0),
        )
        self._record.samples = {"step": step, "images": images}
        self._write()  # at once: the run may be killed at any time, and this happens only once

    def show_confusion(self, confusion_NxN: np.ndarray, *, step: int) -> None:
        """Show the confusion matrix (row: true class, column: predicted class) of the evaluation after `step`."""
        counts = sparse(confusion_NxN)
        self._record.confusion = {"step": step, "classes": len(confusion_NxN), "counts": counts}
        self._write_if_due()

    def warn(self, warnings: Mapping[str, str | None]) -> None:
        """Update the warnings by key; None removes one."""
        self._record.warn(warnings)
        self._write_if_due()

    def close(self, error: BaseException | None) -> None:
        if isinstance(error, LostWorkdirError):
            return  # an existing page belongs to another run
        self._record.status, self._record.message = ending(error)
        self._write()

    def _write_if_due(self) -> None:
        if self._clock() >= self._due:
            self._write()

    def _write(self) -> None:
        start = self._clock()
        if self._start is not None:
            self._start.until = now()
        try:
            self._record.save(self._workdir)
            write_page_of(self._workdir, self._record, self._lines)
            self._complained = False
        except (ValueError, OSError) as error:
            if not self._complained:
                self._say(f"{PAGE_FILE} is left as it is, the run goes on: {error}")
            self._complained = True
        end = self._clock()
        self._due = end + max(SECONDS, (end - start) / SHARE)


def ending(error: BaseException | None) -> tuple[Status, str]:
    """Return the status and message for a run ended by `error`; None means that it finished."""
    if error is None:
        return "finished", ""
    if isinstance(error, TrainingDivergedError):
        return "diverged", str(error)
    if isinstance(error, RunInterruptedError):
        return "stopped", str(error)
    if isinstance(error, KeyboardInterrupt):
        return "stopped", "stopped by Ctrl-C"
    return "failed", f"{type(error).__name__}: {error}"
