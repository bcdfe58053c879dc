"""The draws of a JAX model: the keys of those under `vmap`, in their order, and draws that do not run."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from parity.runs.jax_side import JaxSide
from parity.training_mode.jax_sites import jax_sites

COUNT = 64


class Mapped(nnx.Module):
    """Three draws for every one of many examples."""

    def __init__(self) -> None:
        self.rngs, self.scale = nnx.Rngs(0), nnx.Param(jnp.ones(()))

    def __call__(self, x: jax.Array) -> jax.Array:
        def one(x: jax.Array, key: jax.Array) -> jax.Array:
            for part in jax.random.split(key, 3):
                x = x * jax.random.bernoulli(part, 0.5, x.shape)
            return x

        return jax.vmap(one)(x * self.scale[...], jax.random.split(self.rngs.default(), len(x)))


class Shaped(nnx.Module):
    """One draw for its shape alone."""

    def __init__(self) -> None:
        self.rngs, self.scale = nnx.Rngs(0), nnx.Param(jnp.ones(()))

    def __call__(self, x: jax.Array) -> jax.Array:
        like = jax.eval_shape(lambda key: jax.random.normal(key, x.shape), self.rngs.default())
        return x * self.scale[...] + jnp.zeros(like.shape, x.dtype)


X = np.ones((COUNT, 2))


def test_keys_are_in_the_order_of_the_examples():
    """However the calls of the program are scheduled."""
    key = nnx.Rngs(0).default()
    each = jax.vmap(lambda key: jax.random.split(key, 3))(jax.random.split(key, COUNT))
    wanted = [[np.asarray(jax.random.key_data(each[i, j])).tobytes().hex() for i in range(COUNT)] for j in range(3)]
    for _ in range(3):
        sites, unknown = jax_sites(JaxSide.of(Mapped(), "float32", (None,), training=True), [X])
        assert unknown == []
        assert [list(site.keys) for site in sites] == wanted


def test_a_draw_that_is_only_traced_draws_nothing():
    (site,), _ = jax_sites(JaxSide.of(Shaped(), "float32", (None,), training=True), [X])
    assert site.constant
    assert site.size == 0
