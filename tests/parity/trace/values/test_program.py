"""The program of a JAX model: it computes what the model does, in float64, on any input."""

from __future__ import annotations

import jax
import numpy as np
from flax import nnx

from parity.runs.jax_side import JaxSide
from parity.trace.values.jax_values import run
from parity.trace.values.program import Program, traced
from tests.support.parity.traced import planted, tokens


def results(side: JaxSide, program: Program) -> list[np.ndarray]:
    with side.switches():
        return [np.asarray(x) for x in run(program.closed, program.arguments, lambda step: None)]


def test_it_computes_what_the_model_computes():
    sides = planted()
    program = traced(sides.theirs, sides.arrays)
    (found,) = results(sides.theirs, program)
    (wanted,) = sides.ours.forward(sides.arrays)["", 0].outputs
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-13)
    assert all(x.dtype == np.float64 for x in program.arguments)


def test_a_module_of_nnx():
    model = nnx.Sequential(nnx.Linear(8, 4, rngs=nnx.Rngs(0)), nnx.BatchNorm(4, rngs=nnx.Rngs(0)))
    model.eval()
    side = JaxSide.of(model, "float64", [(0, 1, 2)])
    (found,) = results(side, traced(side, [tokens()]))
    np.testing.assert_allclose(found, np.asarray(model(tokens().astype(np.float32))), rtol=1e-4, atol=1e-5)
    before = jax.tree.leaves(nnx.state(side.model))
    assert all((a == b).all() for a, b in zip(before, jax.tree.leaves(nnx.state(side.model)), strict=True))


class Outputs(nnx.Module):
    def __call__(self, x, y):
        return {"sum": x + y, "both": (x, [y])}


def test_all_outputs_in_order():
    side = JaxSide.of(Outputs(), "float64", [(0, 1, 2), (0, 1, 2)])
    x, y = tokens(), tokens() + 1
    found = results(side, traced(side, [x, y]))
    assert [float(z.flat[0]) for z in found] == [x.flat[0], y.flat[0], (x + y).flat[0]]


def test_jit_stays_in_the_program():
    """Its operations are entered when the program runs; the model may be compiled by its author."""
    side = JaxSide.of(nnx.Sequential(jax.jit(lambda x: x * 2)), "float64", [(0, 1, 2)])
    program = traced(side, [tokens()])
    assert {eqn.primitive.name for eqn in program.closed.jaxpr.eqns} <= {"jit", "pjit"}
    np.testing.assert_array_equal(results(side, program)[0], 2 * tokens())
