from __future__ import annotations

import signal
import threading

import jax
import pytest
from jax.experimental import multihost_utils

from t2t_jax.interrupt import Interruption


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_handlers_come_back(number: signal.Signals):
    before = signal.getsignal(number)
    with Interruption() as interruption:
        assert interruption.requested(1) is None
        signal.raise_signal(number)
        assert interruption.requested(2) == number.name
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_stops_at_once():
    with Interruption() as interruption:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert interruption.requested(1) == "SIGINT"


def test_a_second_sigterm_changes_nothing():
    """Schedulers repeat it."""
    with Interruption() as interruption:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert interruption.requested(1) == "SIGTERM"


def test_another_thread_may_train_too():
    seen: list[str | None] = []

    def body() -> None:
        with Interruption() as interruption:
            seen.append(interruption.requested(1))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [None]


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
