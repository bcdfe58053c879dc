"""The programs here are users' code, which broadcasts over axes; the tests of our own models do not."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def _broadcasting() -> Iterator[None]:
    with jax.numpy_rank_promotion("allow"):
        yield
