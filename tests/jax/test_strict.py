"""The suite is strict, as tests/conftest.py and pyproject.toml have it: what would pass elsewhere fails here."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import pytest


def test_warnings_are_errors():
    with pytest.raises(DeprecationWarning, match="old"):
        warnings.warn("old", DeprecationWarning, stacklevel=1)


def test_ranks_are_not_made_equal():
    with pytest.raises(ValueError, match="jax_numpy_rank_promotion"):
        jnp.ones((2, 3)) + jnp.ones(3)


def test_nan_is_an_error():
    with pytest.raises(FloatingPointError, match="nan"):
        jax.jit(jnp.log)(-jnp.ones(2))


def test_tests_come_in_random_order(pytestconfig: pytest.Config):
    assert pytestconfig.pluginmanager.hasplugin("randomly")
