"""Little data, a recipe that trains on them in seconds, and one cache of what XLA compiles for all tests here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from t2t_config import Recipe
from tests.small_data import small_recipe, write_idx_folder


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Many tests here compile the same step: once is enough."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("xla")))
    reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", None)
    reset_cache()


@pytest.fixture(scope="session")
def idx_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_idx_folder(tmp_path_factory.mktemp("idx"))


@pytest.fixture(scope="session")
def recipe(idx_folder: Path) -> Recipe:
    return small_recipe(idx_folder)
