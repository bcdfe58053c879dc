"""Pytest plugin of the coverage campaign: what a worker measured is saved as its session ends.

pytest-xdist kills workers that take more than 10 s to end, as ones full of compiled programs do; at their end it would
be too late.
"""

from __future__ import annotations

import coverage


def pytest_sessionfinish() -> None:
    measuring = coverage.Coverage.current()
    if measuring is not None:
        measuring.save()
