"""Reporter of a run in JAX: that of t2t_common/run/reporter.py, plus XLA traces."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from t2t_common.run import reporter
from t2t_common.run.peak_flops import run_peak
from t2t_common.run.reporter import METRICS_FILE, TrainingDivergedError
from t2t_jax.training.profile import LoggingOptions, Trace

__all__ = ["METRICS_FILE", "Reporter", "TrainingDivergedError"]


class Reporter(reporter.Reporter):
    """Reporter that gets the arguments `peak_flops`, `devices` and `is_main_process` of its base class from JAX."""

    def __init__(
        self, workdir: Path, *, first_step: int, logging: LoggingOptions | None = None, **options: Any
    ) -> None:
        logging = logging or LoggingOptions()
        devices = jax.devices()
        peak_flops = run_peak(devices[0].device_kind, len(devices), logging.peak_tflops)
        is_main_process = jax.process_index() == 0
        named = f"{len(devices)} × {devices[0].device_kind}"
        super().__init__(
            workdir,
            first_step=first_step,
            logging=logging,
            peak_flops=peak_flops,
            devices=named,
            is_main_process=is_main_process,
            **options,
        )
        self._trace = Trace(workdir, first_step=first_step) if logging.profile else None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._trace is not None:
            self._trace.close()
        super().__exit__(kind, error, trace)

    def step(self, step: int, metrics: Mapping[str, Any], **facts: Any) -> None:
        super().step(step, metrics, **facts)
        if self._trace is not None and self._trace.after(step, metrics):
            self.say("the trace is written")

    def fetch(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        return super().fetch(jax.device_get(metrics))
