"""Logging of a training run: progress bar, terminal output and metrics for the writers; raises on NaN or infinity.

If the output is not a terminal, a line is printed every `log_every` steps instead of the progress bar.

Each line of `metrics.jsonl` has `step`, the number of completed steps, and `epoch`, from 0:

- every `log_every` steps: `loss` and `grad_norm` (global, before clipping) of this step, and `lr`; measured since the
  previous such line, excluding evaluations and checkpoints: `images_per_second`, `data_wait` (fraction of time spent
  waiting for the next batch) and, if the device's peak is known, `mfu` (see t2t_config/flops.py and peak_flops.py);
- every epoch: `epoch_loss` (mean over its steps), `seconds`;
- every evaluation: `images`, `top1_correct`, `top5_correct`, `top1`, `top5` (in percent).
"""

from __future__ import annotations

import collections
import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.progress import TimeRemainingColumn as Eta
from rich.text import Text

from t2t_common.io.terminal import PipeSafeConsole, make_console, plain
from t2t_common.run.meter import Meter
from t2t_common.run.options import LoggingOptions
from t2t_common.run_page import RunPage
from t2t_common.workdir.errors import TrainingDivergedError
from t2t_common.workdir.writers import METRICS_FILE, Writer, open_writers

__all__ = ["METRICS_FILE", "Reporter", "TrainingDivergedError"]


class _Bar(Progress):
    """Progress bar with a line of metrics below it."""

    figures = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield Text(self.figures, no_wrap=True, overflow="ellipsis")


class Reporter:
    """Context manager that receives the metrics of every step, fetches them one step later, and logs them.

    Fetching blocks until the device is done, so the metrics of step s - 1 are read while step s runs. With several
    processes, only the first one prints and writes.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        first_step: int,
        last_step: int,
        batch_size: int,
        log_every: int,
        flops_per_image: int = 0,
        peak_flops: float | None = None,
        config: Mapping[str, Any] | None = None,
        logging: LoggingOptions | None = None,
        devices: str = "",
        is_main_process: bool = True,
    ) -> None:
        """
        Args:
            workdir: Folder to write to.
            first_step: Steps already completed.
            last_step: Total number of steps of the run.
            batch_size: Global batch size, over all processes.
            log_every: Steps between two log lines.
            flops_per_image: Training FLOPs per image.
            peak_flops: Total peak of all devices in FLOP/s; without it, MFU is not reported.
            config: Configuration of the run, for Weights & Biases and the report page.
            logging: Logging options.
            devices: Description of the devices.
            is_main_process: Whether this is the first process.
        """
        logging = logging or LoggingOptions()
        self._log_every, self._last_step, self.devices = log_every, last_step, devices
        self._pending: collections.deque[tuple[int, Mapping[str, Any], dict[str, Any]]] = collections.deque()
        self._loss_sum, self._loss_count = 0.0, 0  # since the last flush
        self._console = make_console(PipeSafeConsole, highlight=False, soft_wrap=True, quiet=not is_main_process)
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("left"), Eta())
        self._bar = _Bar(TextColumn("step"), *columns, console=self._console)
        self._bar.disable = not self._console.is_terminal
        self._task = self._bar.add_task("steps", total=last_step, completed=first_step)
        self._meter = Meter(batch_size, flops_per_image=flops_per_image, peak_flops=peak_flops)
        self._warned: set[str] = set()
        self._writers: list[Writer] = []
        self._page: RunPage | None = None
        if is_main_process:
            self._writers = open_writers(workdir, logging.log, first_step=first_step, config=config or {}, say=self.say)
            self._page = RunPage(
                workdir,
                first_step=first_step,
                last_step=last_step,
                batch_size=batch_size,
                config=config or {},
                devices=devices,
                say=self.say,
            )
            self._writers.append(self._page)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        for writer in self._writers:
            writer.close(error)

    def waiting(self) -> contextlib.AbstractContextManager[None]:
        """Return a context manager around fetching the next batch, which measures the wait."""
        return self._meter.waiting()

    def step(self, step: int, metrics: Mapping[str, Any], **facts: Any) -> None:
        """Receive the metrics of `step` (from 1), still on the device, and read those of the previous step."""
        self._pending.append((step, metrics, facts))
        if len(self._pending) > 1:
            self._read_one()

    def flush(self) -> float:
        """Read all pending metrics and return the mean loss since the last flush."""
        total, count = self.epoch_loss() or (0.0, 0)
        self.continue_epoch((0.0, 0))
        return total / max(1, count)

    def epoch_loss(self) -> tuple[float, int] | None:
        """Read all pending metrics and return sum and number of losses since the last flush, None without any."""
        while self._pending:
            self._read_one()
        self._meter.pause()
        return (self._loss_sum, self._loss_count) if self._loss_count else None

    def continue_epoch(self, loss: Sequence[Any]) -> None:
        """Initialize the loss sum with the value that `epoch_loss` returned before the run was interrupted."""
        self._loss_sum, self._loss_count = loss

    def line(self, text: str, values: Mapping[str, Any]) -> None:
        """Print `text` and write `values` to the log."""
        self._console.print(plain(text))
        self._write(values)

    def say(self, text: str) -> None:
        """Print a line in the terminal."""
        self._console.print(plain(text))

    def warn(self, warnings: Mapping[str, str | None], *, again: bool = False) -> None:
        """Show warnings by key (see t2t_common/run/warnings.py).

        A warning is printed once, or repeated with `again`, and stays on the report page until its text is None.
        """
        for key, text in warnings.items():
            if text is None:
                self._warned.discard(key)
            elif again or key not in self._warned:
                self._warned.add(key)
                self._console.print(plain(f"warning: {text}"))
        if self._page is not None:
            self._page.warn(warnings)

    def start(self, lines: Iterable[str]) -> None:
        """Print the summary of the run (see banner.py) if the output is not a terminal."""
        if not self._console.is_terminal:
            for text in lines:
                self._console.print(plain(text))

    def show_samples(self, batch: Mapping[str, Any], *, step: int) -> None:
        """Show images of the batch of `step` on the report page, as the model saw them.

        `batch` is {"image": (B, H, W, C), "label": (B,) or (B, num_classes)}.
        """
        if self._page is not None:
            self._page.show_samples(np.asarray(batch["image"]), np.asarray(batch["label"]), step=step)

    def show_confusion(self, confusion_NxN: np.ndarray, *, step: int) -> None:
        """Show the confusion matrix after `step` (row: true class, column: predicted class) on the report page."""
        if self._page is not None:
            self._page.show_confusion(confusion_NxN, step=step)

    def fetch(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Return the metrics of a step as floats; blocks until the device is done."""
        return {name: float(value) for name, value in metrics.items()}

    def _read_one(self) -> None:
        step, metrics, facts = self._pending.popleft()
        values = self.fetch(metrics)
        broken = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
        if broken:
            raise TrainingDivergedError(
                f"step {step}: {' and '.join(broken)}: lower --lr or set --clip-grad 1; the last checkpoint is valid",
                step,
            )
        self._meter.step()
        self._loss_sum, self._loss_count = self._loss_sum + values["loss"], self._loss_count + 1
        self._bar.figures = figures = _figures({**values, **facts, **self._meter.rates()})
        self._bar.update(self._task, completed=step)
        if step % self._log_every == 0:
            if not self._console.is_terminal:  # a terminal shows the progress bar
                self._console.print(f"step {step:>6}/{self._last_step}   {figures}", markup=False)
            self._write({"step": step, **values, **facts, **self._meter.read()})

    def _write(self, values: Mapping[str, Any]) -> None:
        for writer in self._writers:
            writer.write(values)


_SHOWN = {
    "loss": "loss {:.4f}",
    "lr": "lr {:.2e}",
    "grad_norm": "gradient {:.3g}",
    "images_per_second": "{:,.0f} images/s",
    "mfu": "MFU {:.1%}",
    "data_wait": "waits for data {:.0%}",
}


def _figures(values: Mapping[str, float]) -> str:
    return "   ".join(text.format(values[name]) for name, text in _SHOWN.items() if name in values)
