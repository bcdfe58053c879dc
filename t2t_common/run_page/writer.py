"""The page of a run that goes on: written again every few seconds, at next to no cost."""

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
"""Between two writes of the page at least."""
SHARE = 0.01
"""Of the run's time that may go into its page at most."""


class RunPage:
    """A writer (see writers.py). A page that cannot be written is complained of once, and the run goes on."""

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
            workdir: of the run; what `metrics.jsonl` holds there belongs to it.
            first_step: steps done before.
            last_step: steps of the whole run.
            batch_size: of all processes together.
            config: what is run: the metadata of its checkpoints.
            devices: that it runs on, in words.
            say: takes a complaint.
            clock: seconds.
        """
        self._workdir, self._say, self._clock = workdir, say, clock
        self._lines = read_lines(workdir / METRICS_FILE)
        found = Record.read(workdir) if first_step else None  # from the start it is another run, in the same place
        self._record = found or Record()
        self._record.last_step, self._record.batch_size, self._record.config = last_step, batch_size, dict(config)
        self._start = self._record.begin(first_step, devices)
        self._complained = False
        self._write()

    def write(self, values: Mapping[str, Any]) -> None:
        self._lines.append(dict(values))
        self._write_if_due()

    def show_samples(self, images_BxHxWxC: np.ndarray, labels: np.ndarray, *, step: int) -> None:
        """Images of the batch of `step`, normalised, and their labels (B,) or targets (B, num_classes)."""
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
        self._write()  # once in a run, which may be killed at any time

    def show_confusion(self, confusion_NxN: np.ndarray, *, step: int) -> None:
        """Images by class (row) and first guess (column), of the evaluation after `step`."""
        counts = sparse(confusion_NxN)
        self._record.confusion = {"step": step, "classes": len(confusion_NxN), "counts": counts}
        self._write_if_due()

    def warn(self, warnings: Mapping[str, str | None]) -> None:
        """Texts by key that take the place of earlier ones; None for none."""
        self._record.warn(warnings)
        self._write_if_due()

    def close(self, error: BaseException | None) -> None:
        if isinstance(error, LostWorkdirError):
            return  # the page that is there, if any, is another run's
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
    """How a run ended that `error` ended, and why; None: by itself."""
    if error is None:
        return "finished", ""
    if isinstance(error, TrainingDivergedError):
        return "diverged", str(error)
    if isinstance(error, RunInterruptedError):
        return "stopped", str(error)
    if isinstance(error, KeyboardInterrupt):
        return "stopped", "stopped by Ctrl-C"
    return "failed", f"{type(error).__name__}: {error}"
