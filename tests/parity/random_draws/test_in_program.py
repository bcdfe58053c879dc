"""Random draws in a traced program are refused only if its outputs depend on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from parity.random_draws.in_program import refuse_draws

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    "f",
    [
        lambda x: x + jax.random.normal(KEY, (3,)),
        lambda x: jax.jit(lambda x: x * jax.random.bernoulli(KEY, 0.5, (3,)))(x),
        lambda x: jax.lax.scan(lambda c, _: (c + jax.random.uniform(KEY, (3,)), None), x, None, 2)[0],
    ],
)
def test_a_draw_is_refused_with_its_line(f: Callable[[Any], Any]):
    with pytest.raises(ValueError, match=r"JAX's model draws random numbers \(test_in_program.py:\d+\)"):
        refuse_draws(jax.make_jaxpr(f)(jnp.ones(3)), "model")


@pytest.mark.parametrize("f", [lambda x: x, lambda x: (jax.random.normal(KEY, (3,)), x)[1]])
def test_no_draw_and_one_without_effect(f: Callable[[Any], Any]):
    refuse_draws(jax.make_jaxpr(f)(jnp.ones(3)), "model")
