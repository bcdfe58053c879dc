"""Logging options and profiling of a run; they do not affect its results."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax

from t2t_common.run import options

PROFILE_FOLDER = "profile"
WARM_UP_STEPS, TRACED_STEPS = 3, 5


@dataclasses.dataclass(frozen=True)
class LoggingOptions(options.LoggingOptions):
    """Command line options."""

    profile: bool = False
    """Record an XLA trace of five steps in the workdir's folder profile (for XProf or Perfetto)."""


class Trace:
    """Record a trace of `TRACED_STEPS` steps in `workdir/profile`, after `WARM_UP_STEPS` warm-up steps."""

    def __init__(self, workdir: Path, *, first_step: int) -> None:
        self._folder = workdir / PROFILE_FOLDER
        self._begin = first_step + WARM_UP_STEPS
        self._end = self._begin + TRACED_STEPS
        self._annotation: jax.profiler.StepTraceAnnotation | None = None

    def after(self, step: int, metrics: Any) -> bool:
        """Update after dispatching `step`, which returned `metrics`; return whether the trace has just been written."""
        running = self._annotation is not None
        if self._annotation is not None:
            self._annotation.__exit__(None, None, None)
            self._annotation = None
        if step == self._begin:
            jax.block_until_ready(metrics)
            jax.profiler.start_trace(self._folder)
        if self._begin <= step < self._end:
            self._annotation = jax.profiler.StepTraceAnnotation("train", step_num=step + 1)
            self._annotation.__enter__()
            return False
        if running:
            jax.block_until_ready(metrics)
            jax.profiler.stop_trace()
        return running

    def close(self) -> None:
        """Stop a trace that is still running at the end of the run."""
        if self._annotation is not None:
            self._annotation.__exit__(None, None, None)
            self._annotation = None
            jax.profiler.stop_trace()
