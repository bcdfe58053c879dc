"""A pure function of named arrays as an NNX module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from parity.carry.copies import as_dtype
from parity.carry.ledger import jax_variables
from parity.carry.program import Program, Pure, Table, title_of
from parity.carry.rules import LeafRule, Rules


class Scale(Pure):
    def __init__(self, dtype: Any = None) -> None:
        self.dtype = dtype

    def __call__(self, arrays: Mapping[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return (args[0] * arrays["a.w"]).astype(self.dtype or jnp.float32)

    def in_dtype(self, dtype: Any) -> Pure:
        return Scale(dtype)


def program(**more: Any) -> Program:
    table = Table([LeafRule("a.weight", "a.w")], layers={"a": nnx.Linear})
    return Program({"a.w": nnx.Param(jnp.full(3, 2.0)), **more}, Scale(), table, "scale")


def test_it_is_one_module_whose_variables_have_whole_names():
    model = program()
    assert [path for path, _ in nnx.iter_modules(model)] == [()]
    assert list(jax_variables(model)) == ["a.w"] == list(model.names)
    clone = nnx.merge(*nnx.split(model))
    np.testing.assert_array_equal(clone(jnp.ones(3)), 2 * np.ones(3))
    assert title_of(clone) == "scale"
    assert title_of(nnx.Linear(2, 3, rngs=nnx.Rngs(0))) == "Linear"


def test_it_computes_in_another_dtype():
    assert as_dtype(program(), jnp.float16)(jnp.ones(3)).dtype == jnp.float16


def test_names_of_its_own_are_reserved():
    for name in ("train", "__call__", "_pure", "dtype"):
        with pytest.raises(ValueError, match=f"is called {name}, which is reserved: rename it"):
            program(**{name: nnx.Param(jnp.ones(1))})


def test_rules_of_the_user_come_first():
    own = LeafRule("kernel", "w", None)
    whole = LeafRule("other", "a.w")
    assert Rules().leaf_rules(program()) == (LeafRule("a.weight", "a.w"),)
    assert Rules(leaves={nnx.Linear: [own]}).leaf_rules(program()) == (LeafRule("a.kernel", "a.w"),)
    assert Rules(leaves={Program: [whole]}).leaf_rules(program()) == (whole,)
    assert Rules(leaves={nnx.Conv: [own]}).leaf_rules(program()) == (LeafRule("a.weight", "a.w"),)


def test_a_layer_type_that_cannot_be_found_is_not_ignored():
    model = Program({"a.w": nnx.Param(jnp.ones(3))}, Scale(), Table(), "scale")
    with pytest.raises(ValueError, match=r"leaves=\{Dense: \.\.\.\}\): the layer types of this model are not known"):
        Rules(leaves={linen.Dense: [LeafRule("weight", "kernel")]}).leaf_rules(model)
    assert Rules(leaves={nnx.Linear: [LeafRule("weight", "kernel")]}).leaf_rules(model) == ()
