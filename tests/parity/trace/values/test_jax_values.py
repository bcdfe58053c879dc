"""Programs run equation by equation: the results of JAX, every value seen, replacements flow on, numbers stay."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from parity.trace.values.jax_values import Step, run

X = np.random.RandomState(0).standard_normal((3, 4)).astype(np.float32)


@jax.custom_jvp
def doubled(x: jax.Array) -> jax.Array:
    return 2 * x


doubled.defjvp(lambda primals, tangents: (doubled(*primals), 2 * tangents[0]))


@jax.custom_vjp
def tripled(x: jax.Array) -> jax.Array:
    return 3 * x


tripled.defvjp(lambda x: (3 * x, None), lambda _, g: (3 * g,))


def scanned(x: jax.Array, **options: Any) -> Any:
    return lax.scan(lambda carry, row: (jnp.sin(carry) + row, carry * row), x[0], x, **options)


PROGRAMS: dict[str, Callable[[jax.Array], Any]] = {
    "plain": lambda x: jnp.tanh(x) @ x.T + 1,
    "jit": lambda x: jax.jit(lambda y: jnp.exp(y) + x)(x),
    "jit with static arguments": lambda x: jax.jit(lambda n, y: y * n, static_argnums=0)(3, x),
    "custom_jvp": lambda x: doubled(jnp.sin(x)) + jax.nn.relu(x) + jax.nn.silu(x),
    "custom_vjp": lambda x: tripled(jnp.sin(x)),
    "remat": lambda x: jax.checkpoint(lambda y: jnp.cos(jnp.sin(y)))(x),
    "scan": scanned,
    "scan in reverse": functools.partial(scanned, reverse=True),
    "scan, unrolled": functools.partial(scanned, unroll=2),
    "scan without steps": lambda x: lax.scan(lambda c, row: (c + row, row * 2), x[0], x[:0]),
    "scan without inputs": lambda x: lax.scan(lambda c, _: (c * 2, None), x, None, length=3),
    "while": lambda x: lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, jnp.sin(s[1]) + x), (0, x)),
    "while without steps": lambda x: lax.while_loop(lambda s: s[0] < 0, lambda s: (s[0] + 1, s[1] * 2), (0, x)),
    "fori": lambda x: lax.fori_loop(0, 3, lambda i, y: y * i + x, x),
    "cond": lambda x: lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x),
    "cond, the other": lambda x: lax.cond(x[0, 0] > 1e9, jnp.sin, jnp.cos, x),
    "switch": lambda x: lax.switch(2, [jnp.sin, jnp.cos, jnp.tanh], x),
    "switch beyond": lambda x: lax.switch(jnp.int32(7), [jnp.sin, jnp.cos, jnp.tanh], x),
    "vmap": lambda x: jax.vmap(lambda row: row / row.sum())(x),
    "grad": jax.grad(lambda x: (jax.nn.gelu(x) ** 2).sum()),
    "nested": lambda x: jax.jit(lambda y: scanned(jax.checkpoint(jnp.sin)(y))[1])(lax.cond(True, jnp.exp, jnp.sin, x)),
    "scan of scans": lambda x: lax.scan(lambda c, row: (c + scanned(x * row)[0], scanned(x + c)[1].sum()), x[0], x),
    "several results": lambda x: (x, jnp.sin(x), 3.0, lax.split(x, (1, 3), 1)),
    "gather": lambda x: x[jnp.array([2, 0]), jnp.array([1, 1])],
    "scatter": lambda x: x.at[1].add(2.0),
    "sort": lambda x: jnp.sort(x, axis=1),
    "keys": lambda x: x + jax.random.normal(jax.random.key(0), x.shape),
    "half": lambda x: (x.astype(jnp.bfloat16) * 2).astype(jnp.float32),
}


def steps(function: Callable[..., Any], *arrays: Any) -> tuple[list[Step], list[Any]]:
    seen: list[Step] = []
    results = run(jax.make_jaxpr(function)(*arrays), arrays, lambda step: seen.append(step))
    return seen, results


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_results_are_those_of_jax(name: str):
    seen, results = steps(PROGRAMS[name], X)
    wanted = jax.tree.leaves(PROGRAMS[name](jnp.asarray(X)))
    assert len(results) == len(wanted)
    for ours, theirs in zip(results, wanted, strict=True):
        assert np.shape(ours) == np.shape(theirs)
        np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=1e-6)
    assert [step.number for step in seen] == list(range(len(seen)))
    assert all(max(step.inputs, default=-1) < step.number for step in seen)


@pytest.mark.parametrize("name", PROGRAMS)
def test_two_runs_have_the_same_numbers(name: str):
    first, second = (steps(PROGRAMS[name], x)[0] for x in (X, X))
    assert [(s.number, s.eqn.primitive.name, s.inputs) for s in first] == [
        (s.number, s.eqn.primitive.name, s.inputs) for s in second
    ]


@pytest.mark.parametrize("name", ["jit", "custom_jvp", "custom_vjp", "remat", "scan", "while", "cond", "nested"])
def test_what_is_inside_is_seen(name: str):
    names = {step.eqn.primitive.name for step in steps(PROGRAMS[name], X)[0]}
    assert names.isdisjoint(
        {"jit", "pjit", "custom_jvp_call", "custom_vjp_call", "checkpoint", "scan", "while", "cond"}
    )
    assert not names.isdisjoint({"sin", "exp"})


@pytest.mark.parametrize(
    ("name", "count"), [("scan", 3), ("scan in reverse", 3), ("while", 3), ("nested", 4), ("cond", 1)]
)
def test_every_step_of_a_loop_is_seen_and_one_branch(name: str, count: int):
    seen, _ = steps(PROGRAMS[name], np.abs(X))
    assert [step.eqn.primitive.name for step in seen].count("sin") == count


@pytest.mark.parametrize("reverse", [False, True])
def test_the_values_of_a_loop_are_those_of_its_steps(reverse: bool):
    seen, _ = steps(lambda x: lax.scan(lambda c, row: (c, jnp.sin(row)), 0.0, x, reverse=reverse)[1], X)
    sines = np.stack([step.array for step in seen if step.eqn.primitive.name == "sin"])
    np.testing.assert_allclose(sines, np.sin(X)[::-1] if reverse else np.sin(X), rtol=1e-6)


def test_what_a_value_is_computed_from():
    seen, _ = steps(lambda x: jnp.sin(x) + jax.jit(jnp.cos)(jnp.tanh(x)), X)
    numbers = {step.eqn.primitive.name: step for step in seen}
    assert numbers["sin"].inputs == numbers["tanh"].inputs == frozenset()
    assert numbers["cos"].inputs == {numbers["tanh"].number}
    assert numbers["add"].inputs == {numbers["sin"].number, numbers["cos"].number}


def test_what_a_loop_returns_is_computed_from_all_its_steps():
    seen, _ = steps(lambda x: jnp.exp(lax.scan(lambda c, row: (c, jnp.sin(row)), 0.0, x)[1]), X)
    sines = {step.number for step in seen if step.eqn.primitive.name == "sin"}
    assert len(sines) == 3
    assert next(step for step in seen if step.eqn.primitive.name == "exp").inputs == sines


def replacing(
    function: Callable[..., Any], name: str, new: Callable[[Any], Any], which: int | None = None
) -> list[Any]:
    """Run with the results of an operation replaced, of all or the one with index `which`."""
    count = -1

    def seen(step: Step) -> Any:
        nonlocal count
        count += step.eqn.primitive.name == name
        chosen = step.eqn.primitive.name == name and which in (None, count)
        return new(np.asarray(step.array)) if chosen else None

    return run(jax.make_jaxpr(function)(X), [X], seen)


@pytest.mark.parametrize(
    "wrap",
    [lambda f: f, jax.jit, jax.checkpoint, lambda f: lambda x: lax.cond(True, f, jnp.cos, x), jax.vmap],
    ids=["plain", "jit", "remat", "cond", "vmap"],
)
def test_a_replaced_value_flows_on(wrap: Callable[..., Any]):
    (result,) = replacing(lambda x: wrap(jnp.sin)(x) * 2 + 1, "sin", np.zeros_like)
    assert np.array_equal(result, np.ones_like(X))


def test_a_replaced_value_flows_on_in_a_loop():
    carry, ys = replacing(
        lambda x: lax.scan(lambda c, row: (c + jnp.sin(row), c * 1.0), x[0] * 0, x), "sin", np.ones_like
    )
    assert np.array_equal(carry, [3, 3, 3, 3])
    assert np.array_equal(ys[:, 0], [0, 1, 2])


def test_one_step_of_a_loop_is_replaced_by_itself():
    function = lambda x: lax.scan(lambda c, row: (c, jnp.sin(row)), 0.0, x)[1]  # noqa: E731
    (result,) = replacing(function, "sin", np.zeros_like, which=1)
    np.testing.assert_allclose(result, np.sin(X) * [[1], [0], [1]], rtol=1e-6)


def test_one_of_two_calls_of_one_function_is_replaced_by_itself():
    layer = jax.jit(jnp.sin)
    first, second = replacing(lambda x: (layer(x), layer(2 * x)), "sin", np.zeros_like, which=1)
    np.testing.assert_allclose(first, np.sin(X), rtol=1e-6)
    assert not second.any()


def test_a_replacement_has_the_dtype_of_the_value():
    (result,) = replacing(lambda x: jnp.sin(x) * 2, "sin", lambda x: np.ones(x.shape, np.float64))
    assert result.dtype == np.float32


def test_constants_of_a_program():
    table = np.arange(12.0).reshape(3, 4).astype(np.float32)
    seen, (result,) = steps(lambda x: jnp.sin(x + table), X)
    np.testing.assert_allclose(result, np.sin(X + table), rtol=1e-5, atol=1e-6)
    assert len(seen) == 2
