"""What a process does when another is gone. With real ones: tests/reliability/test_faults.py."""

from __future__ import annotations

import os

import jax
import pytest

from t2t_jax import processes
from t2t_jax.processes import LostProcessError, joined_processes, told_of_loss

GLOO = "UNKNOWN: Gloo all-reduce failed: [external/gloo/pair.cc:547] Connection closed by peer [10.0.0.1]:40084"


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "join_processes", lambda text: None)


@pytest.mark.usefixtures("two")
def test_a_lost_process_is_told_of():
    with pytest.raises(LostProcessError, match=r"is gone \(UNKNOWN: Gloo.*: start all of them again"), told_of_loss():
        raise jax.errors.JaxRuntimeError(GLOO)
    with pytest.raises(LostProcessError, match=r"is gone \(cannot write x\)"), told_of_loss():
        raise ValueError("cannot write x") from RuntimeError("UNAVAILABLE: from the coordination service")


@pytest.mark.usefixtures("two")
def test_other_errors_stay_as_they_are():
    for error in (ValueError("lower --lr"), RuntimeError("RESOURCE_EXHAUSTED: out of memory")):
        with pytest.raises(type(error)) as raised, told_of_loss():
            raise error
        assert raised.value is error


def test_one_process_can_lose_none():
    with pytest.raises(RuntimeError, match=r"^UNKNOWN: Gloo"), told_of_loss():
        raise RuntimeError(GLOO)


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("no data"), 2, "error: no data\n"),
        (RuntimeError(GLOO), 2, "error: another process of this run is gone"),
        (KeyboardInterrupt(), 130, "stopped\n"),
        (TypeError("a bug"), 1, "Traceback"),
    ],
)
def test_one_of_several_that_fails_ends_at_once(
    error: BaseException,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """Python's own end would wait for the others."""

    def end(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", end)
    with pytest.raises(SystemExit) as ended, joined_processes(None):
        raise error
    assert ended.value.code == code
    assert capsys.readouterr().err.startswith(said)


def test_one_process_ends_as_ever():
    with pytest.raises(ValueError, match="no data"), joined_processes("off"):
        raise ValueError("no data")
