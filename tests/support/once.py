"""What several tests look at, made once, also where pytest-xdist runs them in several processes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pytest
from filelock import FileLock


def made_once(name: str, make: Callable[[], Any], factory: pytest.TempPathFactory) -> Any:
    """What `make` gives, as JSON has it; the first process to ask makes it, the others wait."""
    folder = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # that of all processes
    file = folder / f"{name}.json"
    with FileLock(file.with_suffix(".lock")):
        if not file.exists():
            file.write_text(json.dumps(make()))
    return json.loads(file.read_text())
