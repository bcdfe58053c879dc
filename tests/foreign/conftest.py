"""Foreign code adds arrays of different ranks, as NumPy allows; the rest of the tests forbids it."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def rank_promotion() -> Iterator[None]:
    with jax.numpy_rank_promotion("allow"):
        yield
