"""Casts of a traced program: module, line, and who asked for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from parity.precision.jax_casts import casts, module_scope, tables_of

X = np.random.RandomState(0).standard_normal((2, 6, 8))


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        yield


def _line(function: Callable[..., object], offset: int) -> str:
    return f"test_jax_casts.py:{function.__code__.co_firstlineno + offset}"


def test_module_and_line_of_a_cast() -> None:
    def model(x: jax.Array) -> jax.Array:
        with module_scope("blocks.0.norm"):
            return x.astype(jnp.float32)

    (cast,) = casts(jax.make_jaxpr(model)(X), "float64")
    assert (cast.module, cast.format, cast.made, cast.library) == ("blocks.0.norm", "float32", False, False)
    assert cast.where == _line(model, 2)


def test_a_cast_inside_a_jitted_function_that_was_traced_before() -> None:
    def first(x: jax.Array) -> jax.Array:
        return jnp.mean(x, dtype=jnp.float32)

    def second(x: jax.Array) -> jax.Array:
        with module_scope("a"):
            return jnp.mean(x, dtype=jnp.float32)

    casts(jax.make_jaxpr(first)(X), "float64")
    (cast,) = casts(jax.make_jaxpr(second)(X), "float64")
    assert (cast.module, cast.where, cast.library) == ("a", _line(second, 2), False)


def test_a_cast_inside_a_loop() -> None:
    def model(x: jax.Array) -> jax.Array:
        with module_scope("a"):
            return jax.lax.scan(lambda c, y: (c + y, y.astype(jnp.bfloat16)), x[0], x)[1]

    (cast,) = casts(jax.make_jaxpr(model)(X), "float64")
    assert (cast.module, cast.format) == ("a", "bfloat16")


def test_numbers_made_narrow() -> None:
    found = casts(jax.make_jaxpr(lambda: jnp.arange(6, dtype=jnp.float32))(), "float64")
    assert [cast.made for cast in found] == [True]


def test_the_softmax_of_jaxs_attention_is_its_own() -> None:
    def model(x: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(*[x[:, :, None]] * 3)

    found = casts(jax.make_jaxpr(model)(X), "float64")
    assert found
    assert all(cast.library for cast in found)


def test_a_layer_that_is_told_its_type_was_told_by_the_model() -> None:
    layer = nnx.Linear(8, 8, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    found = casts(jax.make_jaxpr(lambda x: layer(x))(X), "float64")
    assert found
    assert not any(cast.library for cast in found)


def test_tables_that_a_program_holds_or_is_given() -> None:
    table = np.random.RandomState(0).rand(8).astype(np.float32)

    def model(x: jax.Array, given: jax.Array) -> jax.Array:
        with module_scope("a"):
            x = x * jnp.asarray(table)
        with module_scope("b"):
            return x * given

    found = tables_of(jax.make_jaxpr(model)(X, table + 1), [X, table + 1], "float64")
    assert sorted(path for path, _ in found) == ["a", "b"]
