"""Little data, and a recipe that trains on them in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from t2t_config import Recipe
from tests.small_data import small_recipe, write_idx_folder


@pytest.fixture(scope="session")
def idx_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_idx_folder(tmp_path_factory.mktemp("idx"))


@pytest.fixture(scope="session")
def recipe(idx_folder: Path) -> Recipe:
    return small_recipe(idx_folder)
