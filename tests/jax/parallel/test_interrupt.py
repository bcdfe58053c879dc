from __future__ import annotations

import signal

import jax
import pytest
from jax.experimental import multihost_utils

from t2t_jax.parallel.interrupt import Interruption


def test_one_process_listens_itself():
    with Interruption() as interruption:
        signal.raise_signal(signal.SIGTERM)
        assert interruption.requested(1) == "SIGTERM"


def test_several_processes_agree_on_the_step(monkeypatch: pytest.MonkeyPatch):
    """JAX's service is asked at each step, and SIGTERM is left to it."""
    asked: list[int] = []

    def reached(step: int) -> bool:
        asked.append(step)
        return step == 3

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", reached)
    before = signal.getsignal(signal.SIGTERM)
    with Interruption() as interruption:
        assert signal.getsignal(signal.SIGTERM) is before
        assert [interruption.requested(step) for step in (1, 2, 3)] == [None, None, "preemption"]
    assert asked == [1, 2, 3]
