"""Every operation of the table computes what JAX computes, for every dtype that the table takes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from parity.trace.values import numpy_operations
from parity.trace.values.numpy_operations import evaluate

FLOATS = ("float64", "float32")
WHOLE = ("int32", "int64")
TABLES = ("_ELEMENTWISE", "_FLOATS", "_LOGICAL", "_OTHER")
NAMES = {name for table in TABLES for name in getattr(numpy_operations, table)}

SPECIAL = (0.0, -0.0, np.inf, -np.inf, np.nan, 1e-300, 50.0, -50.0, 1000.0, -1000.0)


@pytest.fixture(autouse=True)
def _wide() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def values(dtype: str, *shape: int, seed: int = 0) -> np.ndarray:
    draw = np.random.RandomState(seed)
    if dtype == "bool":
        return draw.rand(*shape) < 0.5
    if dtype in WHOLE:
        return draw.randint(-5, 6, shape).astype(dtype)
    return draw.standard_normal(shape).astype(dtype)


def assert_the_same(function: Any, *arrays: Any) -> set[str]:
    """Run every equation in NumPy and by JAX's own `bind`, and compare; return the operations that the table ran."""
    closed = jax.make_jaxpr(function)(*arrays)
    env = dict(zip(closed.jaxpr.invars, arrays, strict=True))
    env.update(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    found = set()
    for eqn in closed.jaxpr.eqns:
        given = [x.val if hasattr(x, "val") else env[x] for x in eqn.invars]
        wanted = eqn.primitive.bind(*map(jnp.asarray, given), **eqn.params)
        wanted = wanted if eqn.primitive.multiple_results else [wanted]
        results = evaluate(eqn, given)
        if results is not None:
            found.add(eqn.primitive.name)
            for ours, theirs, var in zip(results, wanted, eqn.outvars, strict=True):
                assert isinstance(ours, np.ndarray)
                assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype) == (var.aval.shape, var.aval.dtype)
                limit = {"float64": 1e-13, "float32": 1e-5}.get(ours.dtype.name, 0)
                np.testing.assert_allclose(ours, theirs, rtol=limit, atol=limit)
        env.update(zip(eqn.outvars, wanted, strict=True))
    return found


UNARY = {
    "neg": lax.neg,
    "exp": lax.exp,
    "exp2": lax.exp2,
    "log": lax.log,
    "log1p": lax.log1p,
    "expm1": lax.expm1,
    "tanh": lax.tanh,
    "sin": lax.sin,
    "cos": lax.cos,
    "sqrt": lax.sqrt,
    "rsqrt": lax.rsqrt,
    "logistic": lax.logistic,
    "abs": lax.abs,
    "sign": lax.sign,
    "square": lax.square,
    "floor": lax.floor,
    "ceil": lax.ceil,
    "is_finite": lax.is_finite,
    "copy": lambda x: lax.copy_p.bind(x),
}
BINARY = {
    "add": lax.add,
    "sub": lax.sub,
    "mul": lax.mul,
    "max": lax.max,
    "min": lax.min,
    "div": lax.div,
    "pow": lax.pow,
    "eq": lax.eq,
    "ne": lax.ne,
    "lt": lax.lt,
    "le": lax.le,
    "gt": lax.gt,
    "ge": lax.ge,
}
LOGICAL = {
    "and": lax.bitwise_and,
    "or": lax.bitwise_or,
    "xor": lax.bitwise_xor,
}
WHOLE_TOO = ("neg", "abs", "sign", "square")
OTHER = {
    "broadcast_in_dim": [
        lambda x: lax.broadcast_in_dim(x, (2, 3, 4, 5), (1, 2)),
        lambda x: jnp.broadcast_to(x[0, 0], (2, 3)),
        lambda x: jnp.broadcast_to(x[:, :1], (7, 3, 4)),
    ],
    "clamp": [
        lambda x: lax.clamp(jnp.zeros((), x.dtype), x, jnp.ones((), x.dtype)),
        lambda x: lax.clamp(x[:1] * x, x, x),
    ],
    "concatenate": [lambda x: lax.concatenate([x, x[:, :0], x + x], 1)],
    "convert_element_type": [
        *(lambda x, to=to: lax.convert_element_type(x, to) for to in ("float64", "float32", "int32", "int64", "bool"))
    ],
    "cumsum": [*(lambda x, i=i, r=r: lax.cumsum(x, i, reverse=r) for i, r in itertools.product((0, 1), (False, True)))],
    "integer_pow": [*(lambda x, y=y: lax.integer_pow(x, y) for y in (0, 1, 2, 3, -1, -2))],
    "iota": [
        lambda x: lax.broadcasted_iota(x.dtype, (2, 3, 4), 1),
        lambda x: lax.iota(x.dtype, 0),
        lambda x: lax.iota(x.dtype, 5),
    ],
    "reduce_max": [
        lambda x: lax.reduce_max(x, (0,)),
        lambda x: lax.reduce_max(x, (0, 1)),
        lambda x: lax.reduce_max(x, ()),
    ],
    "reduce_min": [lambda x: lax.reduce_min(x, (1,)), lambda x: lax.reduce_min(x, (0, 1))],
    "reduce_sum": [
        lambda x: lax.reduce_sum(x, (0,)),
        lambda x: lax.reduce_sum(x, (0, 1)),
        lambda x: lax.reduce_sum(x[:0], (0,)),
        lambda x: lax.reduce_sum(x, ()),
    ],
    "reshape": [
        lambda x: lax.reshape(x, (2, 6)),
        lambda x: lax.reshape(x[:0], (0, 7)),
        lambda x: lax.reshape(x[0, :1], ()),
    ],
    "rev": [lambda x: lax.rev(x, (0,)), lambda x: lax.rev(x, (0, 1))],
    "select_n": [lambda x: lax.select(x == x[:, :1], x, x + x), lambda x: lax.select_n(x[0, 0] == x[0, 1], x, x + x)],
    "slice": [lambda x: lax.slice(x, (0, 1), (3, 4), (2, 2)), lambda x: lax.slice(x, (1, 1), (1, 3))],
    "split": [lambda x: lax.split(x, (1, 0, 3), 1)],
    "squeeze": [
        lambda x: lax.squeeze(x[:1, None], (0, 1)),
        lambda x: lax.squeeze(x[None], (-4,)) if x.ndim > 3 else x[:, 0],
    ],
    "transpose": [lambda x: lax.transpose(x, (1, 0)), lambda x: lax.transpose(x[None], (2, 0, 1))],
    "stop_gradient": [lambda x: lax.stop_gradient(x) * x],
}


@pytest.mark.parametrize("name", UNARY)
@pytest.mark.parametrize("dtype", FLOATS)
def test_operations_on_one_array(name: str, dtype: str):
    assert assert_the_same(UNARY[name], values(dtype, 3, 4)) == {name}
    assert_the_same(UNARY[name], values(dtype, 0, 4))
    if name not in ("sin", "cos"):  # huge arguments are reduced in other ways
        special = np.array(SPECIAL, dtype)
        assert_the_same(UNARY[name], special)


@pytest.mark.parametrize("name", WHOLE_TOO)
@pytest.mark.parametrize("dtype", WHOLE)
def test_operations_on_one_array_of_integers(name: str, dtype: str):
    assert assert_the_same(UNARY[name], values(dtype, 3, 4)) == {name}
    extreme = np.array([np.iinfo(dtype).min, np.iinfo(dtype).max, 0], dtype)
    assert_the_same(UNARY[name], extreme)


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("dtype", [*FLOATS, *WHOLE, "bool"])
def test_operations_on_two_arrays(name: str, dtype: str):
    function = BINARY[name]
    x, y = values(dtype, 3, 4), values(dtype, 3, 4, seed=1)
    if (dtype == "bool" and name in ("add", "sub", "mul", "div")) or (dtype not in FLOATS and name == "pow"):
        return  # not defined
    if dtype in WHOLE and name == "div":
        y = np.where(y == 0, 3, y).astype(dtype)
    found = assert_the_same(function, abs(x) if name == "pow" else x, y)
    assert found == (set() if dtype in WHOLE and name == "div" else {name})
    if dtype in FLOATS:
        first, second = (np.array(z, dtype) for z in zip(*itertools.product(SPECIAL, SPECIAL), strict=True))
        if name != "pow":  # XLA's pow differs from C's at infinities of base -1
            assert_the_same(function, first, second)


@pytest.mark.parametrize("name", LOGICAL)
def test_logical_operations(name: str):
    x, y = values("bool", 3, 4), values("bool", 3, 4, seed=1)
    assert assert_the_same(LOGICAL[name], x, y) == {name}
    assert assert_the_same(LOGICAL[name], values("int32", 3, 4), values("int32", 3, 4, seed=1)) == set()


def test_not():
    assert assert_the_same(lax.bitwise_not, values("bool", 3, 4)) == {"not"}
    assert assert_the_same(lax.bitwise_not, values("int32", 3, 4)) == set()


@pytest.mark.parametrize(("name", "case"), [(name, i) for name, cases in OTHER.items() for i in range(len(cases))])
@pytest.mark.parametrize("dtype", [*FLOATS, *WHOLE, "bool"])
def test_other_operations(name: str, case: int, dtype: str):
    if dtype == "bool" and name not in (
        *("broadcast_in_dim", "concatenate", "convert_element_type", "reshape", "rev", "slice", "split", "squeeze"),
        "transpose",
    ):
        return
    if name == "integer_pow" and dtype not in FLOATS and case >= 4:
        return  # negative powers of integers are not defined
    assert_the_same(OTHER[name][case], values(dtype, 3, 4))


def test_floats_become_integers_in_jax():
    x = np.array([-1.7, -0.5, 0.0, 0.5, 1.7, 2.5e9])
    assert assert_the_same(lambda x: lax.convert_element_type(x, "int32"), x) == set()


@pytest.mark.parametrize("dtype", FLOATS)
def test_floats_outside_the_range_of_integers(dtype: str):
    """XLA makes the largest integer; C and NumPy do not."""
    for to in WHOLE:
        assert not assert_the_same(
            lambda x, to=to: lax.convert_element_type(x, to), np.array([*SPECIAL, 1e30, -1e30], dtype)
        )


@pytest.mark.parametrize("dtype", [*FLOATS, "int32"])
@pytest.mark.parametrize(
    ("x", "y", "numbers"),
    [
        ((3, 4), (4, 5), (((1,), (0,)), ((), ()))),
        ((3, 4), (5, 4), (((1,), (1,)), ((), ()))),
        ((2, 3, 4), (2, 4, 5), (((2,), (1,)), ((0,), (0,)))),
        ((3, 2, 4), (4, 5, 2), (((2,), (0,)), ((1,), (2,)))),
        ((2, 3, 4, 5), (4, 2, 6, 5), (((3,), (3,)), ((2, 0), (0, 1)))),
        ((2, 3, 4), (3, 4, 5), (((1, 2), (0, 1)), ((), ()))),
        ((4,), (4,), (((0,), (0,)), ((), ()))),
        ((3,), (4,), (((), ()), ((), ()))),
        ((3, 0), (0, 5), (((1,), (0,)), ((), ()))),
        ((2, 3, 0), (2, 0, 5), (((2,), (1,)), ((0,), (0,)))),
        ((0, 4), (4, 5), (((1,), (0,)), ((), ()))),
        ((0, 3, 4), (0, 4, 5), (((2,), (1,)), ((0,), (0,)))),
        ((), (3, 4), (((), ()), ((), ()))),
    ],
)
def test_products(x: tuple[int, ...], y: tuple[int, ...], numbers: Any, dtype: str):
    found = assert_the_same(lambda a, b: lax.dot_general(a, b, numbers), values(dtype, *x), values(dtype, *y, seed=1))
    assert found == (set() if dtype == "int32" else {"dot_general"})


def test_products_of_float32_into_float64():
    found = assert_the_same(
        lambda a, b: jnp.matmul(a, b, preferred_element_type="float64"),
        values("float32", 3, 400),
        values("float32", 400, 2),
    )
    assert found == {"dot_general"}


def test_scalars_of_python():
    assert assert_the_same(lambda x: 2.0 * x + 1, values("float64", 3, 4)) == {"mul", "add"}


def test_selecting_among_more_than_two_is_left_to_jax():
    which = np.array([0, 2, 1], np.int32)
    arrays = [values("float64", 3, seed=i) for i in range(3)]
    assert assert_the_same(lambda *a: lax.select_n(*a), which, *arrays) == set()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "complex128", "int8", "uint32"])
def test_other_dtypes_are_left_to_jax(dtype: str):
    x = jnp.ones((3,), dtype)
    assert assert_the_same(lambda x: x + x, x) == set()


def test_keys_of_random_numbers_are_left_to_jax():
    assert assert_the_same(lambda k: jax.random.key_data(k), jax.random.key(0)) == set()


def test_empty_maxima_are_left_to_jax():
    assert assert_the_same(lambda x: lax.reduce_max(x, (0,)), np.zeros((0, 3))) == set()


def test_every_operation_of_the_table_is_tested():
    assert NAMES - {*UNARY, *BINARY, *LOGICAL, *OTHER, "not", "dot_general"} == {"add_any", "copy_p"}


def test_sums_of_gradients():
    found = assert_the_same(lambda x: jax.grad(lambda x: (x * jnp.exp(x)).sum())(x), values("float64", 3))
    assert "add_any" in found
