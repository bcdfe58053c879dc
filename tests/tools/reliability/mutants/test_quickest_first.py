"""The order of tests while mutants run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from mutmut.state import state

from tools.reliability.mutants.quickest_first import pytest_collection_modifyitems


def test_the_quickest_go_first_and_new_ones_before_all(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(state(), "duration_by_test", {"slow": 2.0, "quick": 0.1})
    items: list[Any] = [SimpleNamespace(nodeid=name) for name in ("slow", "new", "quick")]
    pytest_collection_modifyitems(items)
    assert [item.nodeid for item in items] == ["new", "quick", "slow"]
