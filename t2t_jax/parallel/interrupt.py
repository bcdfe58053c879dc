"""A run of several processes that is asked to stop: all of them do, after the same step."""

from __future__ import annotations

import jax
from jax.experimental import multihost_utils

from t2t_common.workdir import interrupt


class Interruption(interrupt.Interruption):
    """As its base. Where several processes train together, JAX's preemption service listens for SIGTERM instead, and
    has all of them stop at the same step, whichever got the signal.
    """

    @property
    def listens(self) -> bool:
        return jax.process_count() == 1

    def requested(self, step: int) -> str | None:
        if jax.process_count() > 1:
            return "preemption" if multihost_utils.reached_preemption_sync_point(step) else None
        return super().requested(step)
