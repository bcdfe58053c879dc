"""Garbage is collected between stages where the process has grown, and only there."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

from parity.runs import memory


class Cycle:
    """Freed by the garbage collector alone."""

    def __init__(self, size: int) -> None:
        self.itself, self.array = self, np.ones(size, np.uint8)


@pytest.fixture(autouse=True)
def _as_after_a_collection(monkeypatch: pytest.MonkeyPatch):
    gc.collect()
    memory.trim()
    monkeypatch.setattr(memory._Kept, "bytes", memory.resident_bytes())


def left_behind(size: int) -> weakref.ref[Cycle]:
    return weakref.ref(Cycle(size))


def test_what_is_large_is_given_back():
    gone = left_behind(2 * memory.WORTH_BYTES)
    before = memory.resident_bytes()
    memory.release()
    assert gone() is None
    assert before is not None
    assert before - (memory.resident_bytes() or 0) > memory.WORTH_BYTES


def test_where_little_was_taken_nothing_is_collected(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gc, "collect", lambda: pytest.fail("half a second for nothing"))
    gone = left_behind(1000)
    memory.release()
    assert gone() is not None


def test_where_the_system_does_not_say_how_much_it_is_collected(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "resident_bytes", lambda: None)
    gone = left_behind(1000)
    memory.release()
    assert gone() is None
