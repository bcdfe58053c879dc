"""What every test starts from: JAX on the CPU, one compilation of every program, warnings of our own as errors."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest

from tests import profiles

# Read when jax and torch are imported, so set before; pytest-xdist's workers and subprocesses inherit them.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
CACHE = None
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    CACHE = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="xla-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


profiles.register()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", r"error:::(parity|t2t_common|t2t_config|t2t_jax|t2t_torch|tests)\b")


def pytest_unconfigure() -> None:
    if CACHE is not None:
        shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture
def x64() -> Iterator[None]:
    """64-bit types in JAX for one test; without it they are off, as for users."""
    import jax

    with jax.enable_x64(True):
        yield


@pytest.fixture
def uncompiled() -> Iterator[None]:
    """JAX operation by operation: where every program is small and runs once, compiling it takes the most time."""
    import jax

    with jax.disable_jit():
        yield
