"""Casts that only the port makes are proven by leaving them out."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from parity.measure.gates import Row
from parity.precision.by_design import Design
from parity.trace.own_casts import own_casts
from parity.trace.stage import Traced
from parity.trace.values.program import traced
from tests.parity.trace.test_places import PARAMS, Model, port
from tests.support.parity.traced import Sides, tokens


def short(dtype: Any) -> Any:
    return lambda x: jnp.exp(x.astype(dtype)).astype(x.dtype)


def found(function: Any) -> tuple[Row, Traced]:
    """Compare both models, with the casts of the port known as in a check."""
    sides = Sides.of(Model(), function, PARAMS, tokens())
    design = Design(theirs=tuple(own_casts(traced(sides.theirs, sides.arrays))), partners={"": ""})
    stage = dataclasses.replace(sides, theirs=dataclasses.replace(sides.theirs, design=design)).stage()
    (row,) = [row for row in stage.rows if not row.passed]
    return row, stage


def rounded(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32).astype(x.dtype)


def test_a_module_in_float32_is_named_with_its_line():
    row, traced_ = found(port(in_norm=rounded))
    assert (row.name, row.kind) == ("norm", "layer")
    (cause,) = traced_.causes
    assert (cause.module, cause.switch) == ("norm", "float32 leak")
    assert "JAX alone casts to float32 at test_own_casts.py:" in cause.description
    assert 1e-9 < cause.error_before < 1e-6
    assert cause.error_after == 0


def test_the_narrowest_format_is_named():
    _, traced_ = found(port(in_norm=lambda x: x.astype(jnp.bfloat16).astype(x.dtype)))
    assert [cause.switch for cause in traced_.causes] == ["bfloat16 leak"]


@pytest.mark.parametrize(("step", "count"), [(rounded, 1), (lambda x: x, 0)])
def test_the_casts_of_a_program(step: Any, count: int):
    sides = Sides.of(Model(), port(in_norm=step), PARAMS, tokens())
    assert len(own_casts(traced(sides.theirs, sides.arrays))) == count


def test_a_cast_that_is_not_the_only_mistake_is_not_the_cause():
    _, traced_ = found(port(in_norm=short(jnp.float32)))
    assert not [cause for cause in traced_.causes if cause.switch.endswith("leak")]
