"""Logging options of a training run. None of them changes the results."""

from __future__ import annotations

import dataclasses
import math

from t2t_common.workdir.writers import Service, require


@dataclasses.dataclass(frozen=True)
class LoggingOptions:
    """Command-line options for logging."""

    log: tuple[Service, ...] = ()
    """Also log to TensorBoard (in the workdir) or Weights & Biases; metrics.jsonl is always written."""
    peak_tflops: float | None = None
    """Peak TFLOP/s of one device, for MFU; None uses built-in values for TPUs and common NVIDIA GPUs."""

    def __post_init__(self) -> None:
        if self.peak_tflops is not None and not 0 < self.peak_tflops < math.inf:
            raise ValueError(f"peak_tflops must be positive and finite, got {self.peak_tflops}")
        for service in self.log:
            require(service)
