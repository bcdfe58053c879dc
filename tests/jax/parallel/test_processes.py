"""What a process does when another is gone. With real ones: tests/tools/reliability/test_faults.py."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from t2t_common.data.fingerprint import digest_of
from t2t_jax.parallel.processes import LostProcessError, check_same_data, detect_lost_process

GLOO = "UNKNOWN: Gloo all-reduce failed: [external/gloo/pair.cc:547] Connection closed by peer [10.0.0.1]:40084"


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)


@pytest.mark.usefixtures("two")
def test_a_lost_process_is_told_of():
    with (
        pytest.raises(LostProcessError, match=r"has died \(UNKNOWN: Gloo.*: start all of them again"),
        detect_lost_process(),
    ):
        raise jax.errors.JaxRuntimeError(GLOO)
    with pytest.raises(LostProcessError, match=r"has died \(cannot write x\)"), detect_lost_process():
        raise ValueError("cannot write x") from RuntimeError("UNAVAILABLE: from the coordination service")


@pytest.mark.usefixtures("two")
def test_other_errors_stay_as_they_are():
    for error in (ValueError("lower --lr"), RuntimeError("RESOURCE_EXHAUSTED: out of memory")):
        with pytest.raises(type(error)) as raised, detect_lost_process():
            raise error
        assert raised.value is error


def test_one_process_can_lose_none():
    with pytest.raises(RuntimeError, match=r"^UNKNOWN: Gloo"), detect_lost_process():
        raise RuntimeError(GLOO)


@pytest.mark.usefixtures("two")
def test_processes_with_other_data_are_refused(monkeypatch: pytest.MonkeyPatch):
    gathered = lambda other: lambda own: np.stack([own, np.frombuffer(digest_of(other), np.uint8)])  # noqa: E731
    monkeypatch.setattr(multihost_utils, "process_allgather", gathered({"train": 1}))
    assert check_same_data({"train": 1}) == {"train": 1}
    with pytest.raises(ValueError, match="the data of process 1 are not those of process 0: give all the same --data"):
        check_same_data({"train": 2})


def test_one_process_asks_no_other_for_its_data():
    assert check_same_data({"train": 2}) == {"train": 2}
