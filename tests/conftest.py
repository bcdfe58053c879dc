"""What every test starts from: JAX on the CPU, strict about ranks and NaN, one compilation of every program, draws that
the order of the tests does not change. Warnings are errors: see `filterwarnings` in pyproject.toml.

One virtual device, not eight: a run without `--mesh` takes every device there is, so that with eight no test would see
what one device does (fenced blocks, small batches, mixup's pairs), at several times the compilation. What runs on
eight has processes of its own: tests/support/mesh_runs.py.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from t2t_config import Recipe
from tests.support import profiles
from tests.support.small_data import small_recipe, write_idx_folder

# Read when jax and torch are imported, so set before; pytest-xdist's workers and subprocesses inherit them.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
CACHE = None
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    CACHE = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="xla-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    # Not while tests are collected: pytest-xdist's workers import the same files at the same time, and one could read a
    # program that the other is still writing.
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"


profiles.register()

HERE = Path(__file__).parent
SLOW = set((HERE / "slow.txt").read_text().split())
"""Tests that `make test-fast` leaves out, written by tools/slow_tests.py from the durations of a whole run."""
WHOLE_RUNS = {
    *("test_checkpoint", "test_compile", "test_evaluate", "test_train", "test_train_command"),
    *("training/test_checkpoints", "training/test_divergence", "training/test_init_from", "training/test_overhead"),
    *("training/test_reporter", "training/test_scan_blocks"),
}
NANS_ARE_ERRORS = {
    *(
        path
        for folder in ("", "models", "ops", "training", "weights")
        for path in (HERE / "jax" / folder).glob("test_*.py")
        if str(path.relative_to(HERE / "jax").with_suffix("")) not in WHOLE_RUNS
    ),
    HERE / "whole_runs" / "test_token_labeling.py",
}
"""Where the model and its training step are tested. Whole runs look for NaN themselves, and donate their state as they
do for users: JAX donates nothing while it looks.
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.partition("[")[0] in SLOW:
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    if os.environ.pop("JAX_ENABLE_COMPILATION_CACHE", None) and "jax" in sys.modules:
        import jax
        from jax.experimental.compilation_cache.compilation_cache import reset_cache

        jax.config.update("jax_enable_compilation_cache", True)
        reset_cache()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before the fixtures. NumPy's and Python's own generators are seeded by pytest-randomly, which shuffles."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(zlib.crc32(item.nodeid.encode()))
    if jax := sys.modules.get("jax"):
        jax.config.update("jax_debug_nans", item.path in NANS_ARE_ERRORS)


def pytest_unconfigure() -> None:
    if CACHE is not None:
        shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture
def x64() -> Iterator[None]:
    """64-bit types in JAX for one test; without it they are off, as for users."""
    import jax

    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def idx_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_idx_folder(tmp_path_factory.mktemp("idx"))


@pytest.fixture(scope="session")
def recipe(idx_folder: Path) -> Recipe:
    """Trains in seconds."""
    return small_recipe(idx_folder)
