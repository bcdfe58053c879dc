"""Importing our packages and calling them as a library changes nothing that a process shares with other code."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

import pytest

from t2t_jax.weights.orbax_messages import quiet_orbax
from tests.support.process_state import ACTIONS, changes, snapshot


@pytest.mark.parametrize("action", ACTIONS)
def test_nothing_shared_is_changed(action: str, tmp_path: Path):
    assert changes(action, tmp_path) == {}


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda patch: patch.setenv("T2T_TEST", "1"), "os.environ T2T_TEST"),
        (lambda patch: patch.setattr(sys, "unraisablehook", print), "sys.unraisablehook"),
        (lambda patch: patch.setattr(sys, "excepthook", print), "sys.excepthook"),
        (lambda patch: patch.setattr(warnings, "filters", []), "warnings.filters"),
        (lambda patch: patch.setattr(logging.getLogger("absl"), "filters", [print]), "logger absl"),
        (lambda patch: patch.setattr(logging.root, "level", 3), "logger root"),
    ],
)
def test_a_change_is_seen(change, name: str, monkeypatch: pytest.MonkeyPatch):
    before = snapshot()
    change(monkeypatch)
    after = snapshot()
    assert {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)} == {name}


def test_a_command_hides_orbax_for_its_own_time():
    before = snapshot()
    with quiet_orbax():
        differ = {name for name, value in snapshot().items() if value != before[name]}
    assert differ == {"logger absl", "logger asyncio", "sys.unraisablehook"}
    assert snapshot() == before


def test_orbax_alone_is_hidden(caplog: pytest.LogCaptureFixture):
    absl = logging.getLogger("absl")
    orbax = logging.LogRecord("absl", logging.ERROR, "/x/orbax/checkpoint/writer.py", 1, "long", (), None)
    other = logging.LogRecord("absl", logging.ERROR, "/x/grain/reader.py", 1, "kept", (), None)
    with quiet_orbax():
        assert not absl.filter(orbax)
        assert absl.filter(other)
    assert absl.filter(orbax)
