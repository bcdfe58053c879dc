"""Interruption of a run with several processes: all of them stop after the same step."""

from __future__ import annotations

import jax
from jax.experimental import multihost_utils

from t2t_common.workdir import interrupt


class Interruption(interrupt.Interruption):
    """Same as the base class for a single process. With several, JAX's preemption service listens for SIGTERM instead
    and stops all of them at the same step, whichever received the signal.
    """

    @property
    def listens(self) -> bool:
        return jax.process_count() == 1

    def requested(self, step: int) -> str | None:
        if jax.process_count() > 1:
            return "preemption" if multihost_utils.reached_preemption_sync_point(step) else None
        return super().requested(step)
