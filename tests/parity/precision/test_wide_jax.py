"""A program in float32, evaluated wide, is the program in float64: its values and its gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parity.measure.gates import rel_f
from parity.precision.casts import Cast
from parity.precision.wide_jax import whole_scalar, widened

X = np.random.RandomState(0).standard_normal(6)
TABLE = np.random.RandomState(1).standard_normal(6).astype(np.float32)


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"), jax.default_matmul_precision("highest"):
        yield


def _numbers(x: jax.Array) -> jax.Array:
    """Python numbers, which a program holds rounded, in several places."""
    x = x * 0.1 + 1 / math.sqrt(12)
    x = jnp.where(x > 0.3, x, -0.7)
    return (
        jnp.maximum(jax.nn.leaky_relu(x, 0.013), -0.21) * jnp.full(6, 0.3, x.dtype) / jnp.sqrt(jnp.asarray(12, x.dtype))
    )


def _scan(x: jax.Array) -> jax.Array:
    def step(carry: jax.Array, item: jax.Array) -> tuple[jax.Array, jax.Array]:
        return carry * 0.9 + item, (carry * item).astype(x.dtype)

    carry, items = jax.lax.scan(step, jnp.zeros(6, x.dtype), jnp.stack([x, jnp.sin(x)]))
    return carry + items.sum(0)


@jax.custom_jvp
def _cube(x: jax.Array) -> jax.Array:
    return x**3 / 3


_cube.defjvp(lambda primals, tangents: (_cube(*primals), primals[0] ** 2 * tangents[0]))


@jax.custom_vjp
def _straight(x: jax.Array) -> jax.Array:
    return jnp.tanh(x)


_straight.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (g * jnp.cos(0.3 * x),))

FUNCTIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "numbers": _numbers,
    "activations": lambda x: jax.nn.gelu(x) + jax.nn.silu(x) + jax.nn.softplus(x),
    "softmax": lambda x: jax.nn.softmax(x) + jax.nn.logsumexp(x),
    "made": lambda x: x * jnp.cos(10000.0 ** -(jnp.arange(6, dtype=x.dtype) / 6) * 0.7),
    "a table": lambda x: x * jnp.asarray(TABLE).astype(x.dtype) + jnp.exp(jnp.asarray(TABLE).astype(x.dtype)),
    "product": lambda x: jnp.einsum("i,j->i", x, jnp.sin(x), preferred_element_type=x.dtype),
    "jit": lambda x: jax.jit(lambda y: jnp.var(y) + jnp.cumsum(y) * 0.3)(x),
    "remat": lambda x: jax.checkpoint(lambda y: jnp.exp(jnp.sin(y) * 0.1))(x),
    "scan": _scan,
    "scan with remat": lambda x: jax.checkpoint(_scan)(x),
    "cond": lambda x: jax.lax.cond(x.sum() > 0, lambda y: jnp.sin(y), lambda y: y * 0.7, x),
    "indices": lambda x: jnp.sort(x)[jnp.array([0, 0, 1, 2, 3, 5])].at[1].add(0.3) + x.argmax() + jnp.prod(x),
    "vmap": lambda x: jax.vmap(lambda a: jnp.tanh(a) * 0.4)(x),
    "custom_jvp": _cube,
    "custom_vjp": _straight,
}


def whole(cast: Cast) -> bool:
    return True


def _in(dtype: Any, function: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    return lambda x: function(x.astype(dtype)).astype(x.dtype)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_gradients_are_those_of_float64(name: str) -> None:
    narrow, double = _in(jnp.float32, FUNCTIONS[name]), _in(jnp.float64, FUNCTIONS[name])
    x = jnp.asarray(X)
    assert rel_f(narrow(x), double(x)) > 1e-10  # it does lose digits
    assert rel_f(jax.jit(widened(narrow, "float64", whole))(x), double(x)) < 1e-14

    def slope(function: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
        return jax.grad(lambda x: (function(x) * jnp.arange(1.0, 7.0)).sum())

    assert rel_f(jax.jit(widened(slope(narrow), "float64", whole))(x), slope(double)(x)) < 1e-14


def test_a_while_loop() -> None:
    def function(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, 3, lambda i, y: y * 0.9 + jnp.cos(y), x)

    found = widened(_in(jnp.float32, function), "float64", whole)(X)
    assert rel_f(found, function(jnp.asarray(X))) < 1e-15


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_not_allowed_rounds_as_written(name: str) -> None:
    narrow = _in(jnp.float32, FUNCTIONS[name])
    found = jax.jit(widened(narrow, "float64", lambda cast: False))(X)
    np.testing.assert_array_equal(found, jax.jit(narrow)(X))


def test_one_cast_of_two_is_left_out() -> None:
    def function(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        first = jnp.exp(x.astype(jnp.float32))
        return first.astype(x.dtype), jnp.exp(x.astype(jnp.bfloat16)).astype(x.dtype)

    first, second = widened(function, "float64", lambda cast: cast.format == "float32")(X)
    assert rel_f(first, np.exp(X)) < 1e-15
    np.testing.assert_array_equal(second, function(jnp.asarray(X))[1])


def test_bfloat16_in_a_float32_run() -> None:
    with jax.enable_x64(False):
        x = jnp.asarray(X, jnp.float32)
        found = jax.jit(widened(_in(jnp.bfloat16, FUNCTIONS["numbers"]), "float32", whole))(x)
        assert rel_f(found, FUNCTIONS["numbers"](x)) < 1e-6


def test_an_output_that_is_narrow_by_design_comes_whole() -> None:
    (found,) = (widened(lambda x: x.astype(jnp.float32), "float64", whole)(X),)
    assert found.dtype == jnp.float64
    assert widened(lambda x: x.astype(jnp.float32), "float64", lambda cast: False)(X).dtype == jnp.float32


@pytest.mark.parametrize(
    "number", [0.1, -1e-6, 1e-5, 0.044715, 1 / math.sqrt(12), math.sqrt(2 / math.pi), 64**-0.5, 1e9]
)
def test_numbers_of_source_code_are_recovered(number: float) -> None:
    assert whole_scalar(np.float32(number), {}) == pytest.approx(number, rel=1e-15)


def test_a_number_that_the_code_is_known_to_use_goes_first() -> None:
    number = 0.123456789012
    assert whole_scalar(np.float32(number), {float(np.float32(number)): number}) == number
