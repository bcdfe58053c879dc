from __future__ import annotations

import signal
import threading

import pytest

from t2t_common.workdir.interrupt import Interruption


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
