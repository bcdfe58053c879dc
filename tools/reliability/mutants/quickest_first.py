"""Pytest plugin of the mutation campaign: the quickest tests first, since the first that fails ends a mutant's run."""

from __future__ import annotations

import pytest
from mutmut.state import state


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts by the seconds that mutmut measured without a mutant."""
    seconds = state().duration_by_test
    items.sort(key=lambda item: seconds.get(item.nodeid, 0.0))
