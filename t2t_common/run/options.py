"""How a run is watched. Nothing here changes what it computes."""

from __future__ import annotations

import dataclasses
import math

from t2t_common.workdir.writers import Service, require


@dataclasses.dataclass(frozen=True)
class Watch:
    """Options of the command line."""

    log: tuple[Service, ...] = ()
    """Write to TensorBoard (into the workdir) or Weights & Biases too; metrics.jsonl is always written."""
    peak_tflops: float | None = None
    """Peak TFLOP/s of one device, for MFU; None knows TPUs and common NVIDIA GPUs."""

    def __post_init__(self) -> None:
        if self.peak_tflops is not None and not 0 < self.peak_tflops < math.inf:
            raise ValueError(f"peak_tflops must be positive and finite, got {self.peak_tflops}")
        for service in self.log:
            require(service)
