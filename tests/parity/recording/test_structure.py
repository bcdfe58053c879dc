"""Trees of tensors: one order in both frameworks, and what differs in words."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from parity.recording.structure import difference, flatten, form, tensors, with_tensors


class Pair(NamedTuple):
    second: Any
    first: Any


@dataclasses.dataclass(frozen=True)
class Record:
    second: Any
    first: Any = None


def one(value: float) -> torch.Tensor:
    return torch.full((2,), value)


TREES = [
    one(1),
    (one(1), None, [one(2), 3]),
    {"z": one(1), "b": one(2), 3: one(3)},
    collections.OrderedDict(z=one(1), b=one(2)),
    Pair(one(1), one(2)),
    Record(one(1), {"a": one(2)}),
    one(1).reshape(1, 2).max(0),
]


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: type(tree).__name__)
def test_taken_apart_and_put_together(tree: Any) -> None:
    leaves, rebuild = flatten(tree)
    again, _ = flatten(rebuild(leaves))
    assert len(again) == len(leaves)
    assert all(a is b for a, b in zip(again, leaves, strict=True))
    doubled = with_tensors(tree, [2 * x for x in tensors(tree)])
    for a, b in zip(tensors(tree), tensors(doubled), strict=True):
        torch.testing.assert_close(2 * a, b, rtol=0, atol=0)
    assert form(doubled) == form(tree)


def test_by_name_whatever_the_order() -> None:
    ours, theirs = {"z": one(1), "b": one(2)}, {"b": jnp.full(2, 2.0), "z": jnp.ones(2)}
    for a, b in zip(tensors(ours), tensors(theirs), strict=True):
        np.testing.assert_array_equal(a.numpy(), np.asarray(b))
    np.testing.assert_array_equal(tensors(Pair(one(1), one(2)))[0].numpy(), tensors(Record(0, one(2)))[0].numpy())


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"a": one(1)}, Record(second=None, first=one(1))),
        ({"a": one(1)}, {"b": one(1)}),
        ((one(1), None), one(1)),
        ((one(1), None), (one(1), one(1))),
        ((one(1), one(1)), (one(1),)),
        ({"a": one(1), "b": None}, (one(1), one(1))),
        ({"b": one(1), "a": one(1)}, (one(1), one(1))),
        (one(1), {"a": one(1)}),
        ((one(1), 3), (one(1), 4)),
        (Pair(one(1), one(1)), (one(1), one(1))),
        ({"a": {"b": one(1)}}, {"a": one(1)}),
        ({"a": one(1), "b": None}, {"a": one(1), "b": one(1)}),
    ],
)
def test_what_differs_is_said(ours: Any, theirs: Any) -> None:
    found = difference(form(ours), form(theirs))
    assert found is not None
    assert "in PyTorch" in found
    assert "in JAX" in found


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ([one(1), None], (jnp.ones(2), None)),
        (Pair(one(1), one(2)), {"first": jnp.ones(2), "second": jnp.ones(2)}),
        (Record(one(1)), Pair(jnp.ones(2), None)),
        ({"a": (one(1), "text", 2)}, {"a": [jnp.ones(2), "text", 2]}),
        (object(), object()),
        ({"a": one(1), "b": None}, {"a": jnp.ones(2)}),
        (Record(one(1)), {"second": jnp.ones(2)}),
        ((one(1), None, one(1)), (jnp.ones(2), jnp.ones(2))),
        ({"a": {"b": one(1)}}, {"a": (jnp.ones(2),)}),
        (Record(one(1)), (jnp.ones(2),)),
    ],
)
def test_what_is_alike_is_taken(ours: Any, theirs: Any) -> None:
    assert difference(form(ours), form(theirs)) is None
