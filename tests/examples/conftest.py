"""Examples import their neighbours by bare names, as they do when pytest is pointed at their folder."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

import tests.support.inner_runs  # noqa: F401  (before any inner run)

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Imports "folder/module" of examples/; its modules are forgotten again after the test."""
    before = set(sys.modules)

    def load(name: str) -> ModuleType:
        folder, _, module = name.partition("/")
        monkeypatch.syspath_prepend(EXAMPLES / folder)
        return importlib.import_module(module)

    yield load
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(EXAMPLES)):
            del sys.modules[name]


@pytest.fixture
def run_example(pytester: pytest.Pytester) -> Callable[[str], pytest.RunResult]:
    """Runs pytest on a folder of examples/, as its user does."""
    return lambda folder: pytester.runpytest_inprocess("-p", "pytest_parity", EXAMPLES / folder)
