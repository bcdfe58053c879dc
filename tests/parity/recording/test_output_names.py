"""Names for outputs that have names on the other side only."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch

from parity.recording.output_names import aligned_by_order, tensor_names, with_names
from parity.recording.structure import difference, form, tensors


class Outputs(NamedTuple):
    logits: Any
    hidden: Any = None


A, B = torch.zeros(1), torch.ones(1)


@pytest.mark.parametrize("tree", [(A, B), [A, B], (A, None, B)])
def test_a_sequence_gets_the_names_in_their_declared_order(tree: Any) -> None:
    like = form({"logits": A, "attentions": None, "hidden": B})
    found = with_names(tree, like)
    assert found.logits is A
    assert found.hidden is B
    assert found[0] is A, "it stays a tuple: a loss takes its items by number"
    assert len(found) == len(tree)
    assert difference(form(found), like) is None
    assert [x.item() for x in tensors(found)] == [1, 0], "in the order of the names, as the mapping"


def test_inner_sequences_get_names_too() -> None:
    found = with_names({"x": (A, B)}, form({"x": Outputs(A, B)}))
    assert found["x"].hidden is B
    found = with_names((None, (A, B)), form((Outputs(A, B),)))
    assert found[1].logits is A


@pytest.mark.parametrize("like", [{"a": A}, {"not a name": A, "b": B}, {"class": A, "b": B}, {1: A, 2: B}, A, None])
def test_without_names_to_take_it_stays_as_it_is(like: Any) -> None:
    tree = (A, B)
    assert with_names(tree, form(like)) is tree


def test_where_order_decides() -> None:
    assert aligned_by_order(form({"a": A}), form((A,)))
    assert aligned_by_order(form({"a": {"b": A}}), form({"a": (A,)}))
    assert aligned_by_order(form((None, {"b": A})), form(([A],)))
    assert not aligned_by_order(form({"a": A}), form(Outputs(A, B)))
    assert not aligned_by_order(form((A, B)), form([A, B]))


def test_names_of_tensors() -> None:
    assert tensor_names(form(A)) == [""]
    assert tensor_names(form({"logits": A, "states": (A, {"k": B}), "none": None})) == [
        "logits",
        "states[0]",
        "states[1].k",
    ]
    assert tensor_names(form((A, None, B))) == ["[0]", "[2]"]
