"""What a run says about itself: progress bar, lines in the terminal, `metrics.jsonl`; and the guard against NaN."""

from __future__ import annotations

import collections
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.progress import TimeRemainingColumn as Eta
from rich.text import Text

METRICS_FILE = "metrics.jsonl"


class TrainingDivergedError(RuntimeError):
    """The loss or the gradient is no longer finite."""


class _Rate(ProgressColumn):
    """Images per second."""

    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self._batch_size = batch_size

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("- images/s" if speed is None else f"{speed * self._batch_size:,.0f} images/s")


class Reporter:
    """Takes the metrics of every step, fetches them one step late, and reports; a context manager.

    Late, because fetching waits for the device: while step s runs, step s - 1 is read.
    """

    def __init__(self, workdir: Path, *, first_step: int, last_step: int, batch_size: int, log_every: int) -> None:
        self._path = workdir / METRICS_FILE
        self._log_every = log_every
        self._pending: collections.deque[tuple[int, dict[str, jax.Array], dict[str, Any]]] = collections.deque()
        self._loss_sum, self._loss_count = 0.0, 0  # since the last flush
        self._console = Console(highlight=False, soft_wrap=True)
        columns = (BarColumn(), MofNCompleteColumn(), _Rate(batch_size), TextColumn("left"), Eta())
        self._bar = Progress(TextColumn("step"), *columns, TextColumn("{task.fields[loss]}"), console=self._console)
        self._bar.disable = not self._console.is_terminal
        self._task = self._bar.add_task("steps", total=last_step, completed=first_step, loss="")
        _forget_after(self._path, first_step)
        self._file: IO[str] = self._path.open("a")

    def __enter__(self) -> Reporter:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        self._file.close()

    def step(self, step: int, metrics: dict[str, jax.Array], **facts: Any) -> None:
        """Takes the metrics of `step` (from 1), still on the device, and reads those of the step before."""
        self._pending.append((step, metrics, facts))
        if len(self._pending) > 1:
            self._read_one()

    def flush(self) -> float:
        """Reads all that is pending; the mean loss since the last flush."""
        total, count = self.epoch_loss() or (0.0, 0)
        self.continue_epoch((0.0, 0))
        return total / max(1, count)

    def epoch_loss(self) -> tuple[float, int] | None:
        """Reads all that is pending; sum and number of the losses since the last flush, None if there are none."""
        while self._pending:
            self._read_one()
        return (self._loss_sum, self._loss_count) if self._loss_count else None

    def continue_epoch(self, loss: Sequence[Any]) -> None:
        """Begins with the losses that `epoch_loss` gave before the run was interrupted."""
        self._loss_sum, self._loss_count = loss

    def line(self, text: str, values: Mapping[str, Any]) -> None:
        """One line in the terminal and one in the file."""
        self._console.print(text)
        self._write(values)

    def say(self, text: str) -> None:
        """One line in the terminal."""
        self._console.print(text)

    def _read_one(self) -> None:
        step, metrics, facts = self._pending.popleft()
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        broken = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
        if broken:
            raise TrainingDivergedError(
                f"step {step}: {' and '.join(broken)}: lower --lr or set --clip-grad 1; the last checkpoint is sound"
            )
        self._bar.update(self._task, completed=step, loss=f"loss {values['loss']:.4f}")
        self._loss_sum, self._loss_count = self._loss_sum + values["loss"], self._loss_count + 1
        if step % self._log_every == 0:
            self._write({"step": step, **values, **facts})

    def _write(self, values: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()


def _forget_after(path: Path, step: int) -> None:
    """Drops lines after `step`, which a resumed run will write again, and a last line cut off by a crash."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            break
        if values["step"] <= step:
            kept.append(line + "\n")
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept))
    temporary.replace(path)
