"""Draws of JAX are intercepted whatever they are called, and only while they are."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.random import uniform

from parity.random_draws.jax_draws import NAMES, handed_out, in_precision, quiet
from parity.random_draws.matching import SILENT, Law, numbers
from parity.runs.jax_side import JaxSide
from parity.training_mode.jax_sites import jax_sites

X = np.arange(1.0, 49).reshape(2, 3, 8)


class Model(nnx.Module):
    def __init__(self, run: Callable[..., Any], **parts: Any) -> None:
        self.rngs, self.run, self.parts = nnx.Rngs(0), run, nnx.Dict(parts)

    def __call__(self, x: jax.Array) -> Any:
        return self.run(self, x, self.rngs())


def sites(model: Model) -> Any:
    return jax_sites(JaxSide.of(model, "float32", [None], training=True), [X])


@jax.jit
def compiled(key: jax.Array, x: jax.Array) -> jax.Array:
    return x * jax.random.bernoulli(key, 0.8, x.shape)


CASES: dict[str, tuple[Callable[[Any, Any, Any], Any], Law, tuple[int, ...]]] = {
    "bernoulli": (lambda m, x, key: x * jax.random.bernoulli(key, 0.8, x.shape), Law("bernoulli", 0.8), (2, 3, 8)),
    "compiled": (lambda m, x, key: compiled(key, x), Law("bernoulli", 0.8), (2, 3, 8)),
    "probabilities": (
        lambda m, x, key: x * jax.random.bernoulli(key, jnp.full((2, 1, 1), 0.5)),
        Law("bernoulli", 0.5),
        (2, 1, 1),
    ),
    "imported": (lambda m, x, key: x * uniform(key, x.shape), Law("uniform"), (2, 3, 8)),
    "method": (lambda m, x, key: x + m.rngs.noise.normal(x.shape), Law("normal"), (2, 3, 8)),
    "old key": (
        lambda m, x, key: x + jax.random.normal(jax.random.key_data(key), x.shape),
        Law("normal"),
        (2, 3, 8),
    ),
    "gumbel": (lambda m, x, key: jax.random.gumbel(key, x.shape) + x, Law("gumbel"), (2, 3, 8)),
    "categorical": (lambda m, x, key: jax.random.categorical(key, 0 * x), Law("gumbel"), (2, 3, 8)),
    "exponential": (lambda m, x, key: jax.random.exponential(key, x.shape) + x, Law("exponential"), (2, 3, 8)),
    "integers": (lambda m, x, key: jax.random.randint(key, (5,), 0, 9), Law("integers"), (5,)),
    "permutation": (lambda m, x, key: jax.random.permutation(key, x, axis=2), Law("permutation"), (8,)),
    "signs": (lambda m, x, key: x * jax.random.rademacher(key, x.shape), Law("bernoulli", 0.5), (2, 3, 8)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_law_of_every_spelling(name: str) -> None:
    body, law, shape = CASES[name]
    (site,), unknown = sites(Model(body))
    assert unknown == []
    assert (site.law, site.shape, site.constant) == (law, shape, False)
    assert "test_jax_draws.py" in site.line


@pytest.mark.parametrize("name", CASES)
def test_what_is_handed_out_decides_and_the_functions_are_themselves_again(name: str) -> None:
    body, law, _ = CASES[name]
    model, key = Model(body), jax.random.key(0)
    (site,), _ = sites(model)
    x = jnp.asarray(X, jnp.float32)

    def run(seed: int) -> jax.Array:
        handed = in_precision({site.key: [numbers(site, law.keep, seed)]}, "float32")
        with handed_out(model, handed):
            return body(model, x, key)

    before = body(model, x, key) if name != "method" else None
    assert (run(1) == run(1)).all()
    assert not all((run(1) == run(seed)).all() for seed in range(2, 9))
    assert before is None or (before == body(model, x, key)).all()


def test_a_dropout_needs_no_generator_while_numbers_are_handed_out() -> None:
    model = Model(lambda m, x, key: m.parts["drop"](x), drop=nnx.Dropout(0.5))
    x = jnp.asarray(X, jnp.float32)
    with pytest.raises(ValueError, match="rngs"):
        model(x)
    with quiet():
        assert (model(x) == x).all()
    with handed_out(model, {("parts.drop", 0): [SILENT]}):
        assert (model(x) == x).all()
    with pytest.raises(ValueError, match="rngs"):
        model(x)


def test_other_ways_to_draw_are_found_by_what_they_compute() -> None:
    found, unknown = sites(Model(lambda m, x, key: x * jax.random.bits(key, x.shape)))
    assert found == []
    assert len(unknown) == 1
    assert "test_jax_draws.py" in unknown[0]


def test_a_key_that_does_not_change_makes_a_constant() -> None:
    (site,), _ = sites(Model(lambda m, x, key: x * jax.random.bernoulli(jax.random.key(3), 0.5, x.shape)))
    assert site.constant


def test_every_function_is_a_plain_one() -> None:
    """Code can only be exchanged in those."""
    for name in NAMES:
        assert inspect.isfunction(getattr(jax.random, name))
        assert getattr(jax.random, name).__code__.co_freevars == ()
