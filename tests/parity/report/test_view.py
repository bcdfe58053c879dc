"""A report arranged for reading: whose fault a failure is, and where it stands in the tree."""

from __future__ import annotations

import dataclasses

import pytest

from parity import Row
from parity.report.view import FAILED, INHERITED, INSIDE, OK, Node, culprits, describe, groups, tree
from tests.support.parity.samples import LAYERS, failing, passing, with_rows


def flat(node: Node) -> dict[str, Node]:
    return {node.name: node} | {name: found for child in node.children for name, found in flat(child).items()}


def test_the_tree_holds_every_layer_once_in_the_order_of_computation() -> None:
    root = tree(passing())
    nodes = flat(root)
    assert set(nodes) == {name for name, _ in LAYERS} | {"blocks"}
    assert all(nodes[name].type == kind for name, kind in LAYERS)
    assert [child.label for child in root.children] == ["stem", "blocks", "head"]
    assert root.size == len(nodes) - 1


def test_every_row_is_in_the_tree_once() -> None:
    report = passing()
    assert sum(len(node.rows) for node in flat(tree(report)).values()) == len(report.rows)


def test_the_fault_is_told_from_what_follows() -> None:
    status = {name: node.status for name, node in flat(tree(failing())).items()}
    assert status["blocks.1.norm"] == FAILED
    assert {name for name, found in status.items() if found == INSIDE} == {"", "blocks", "blocks.1"}
    assert {name for name, found in status.items() if found == INHERITED} == {"head", "blocks.1.mlp", "blocks.1.mlp.fc"}
    assert status["blocks.0"] == status["stem"] == OK


def test_what_is_passed_on_wrongly_is_the_fault_of_the_module_around() -> None:
    wrong = Row("blocks.0.mlp.fc", "calls", "forced", "float64", 1.0, 1e-13)
    nodes = flat(tree(dataclasses.replace(passing(), rows=(*passing().rows, wrong))))
    assert nodes["blocks.0.mlp"].faults == [wrong]
    assert nodes["blocks.0.mlp.fc"].status == OK


@pytest.mark.parametrize(
    "changed",
    [
        {("stem.weight", "gradient", "free", "float64"): 1.0},
        {("stem", "layer", "free", "float32"): 1.0, ("head", "layer", "free", "float32"): 1.0},
    ],
)
def test_where_nothing_fails_on_correct_inputs_every_failure_is_a_culprit(changed) -> None:
    report = with_rows(passing(), changed)
    assert culprits(report) == report.failures
    assert len(culprits(report)) == len(changed)


def test_float64_and_weights_come_before_float32() -> None:
    forced32 = {("stem", "layer", "forced", "float32"): 1.0}
    forced64 = {("head", "layer", "forced", "float64"): 1.0}
    weights = {("12 tensors", "weights", "-", "as stored"): 1.0}
    assert [row.name for row in culprits(with_rows(passing(), forced32))] == ["stem"]
    assert [row.name for row in culprits(with_rows(passing(), forced32 | forced64))] == ["head"]
    assert {row.name for row in culprits(with_rows(passing(), forced32 | forced64 | weights))} == {"head", "12 tensors"}


def test_only_the_outer_levels_are_open_unless_something_fails() -> None:
    nodes = flat(tree(passing()))
    assert nodes["blocks"].is_open(1)
    assert not nodes["blocks.1"].is_open(2)
    assert flat(tree(failing()))["blocks.1"].is_open(2)
    assert not flat(tree(failing()))["blocks.0"].is_open(2)


def test_groups_hold_all_rows_float64_first_and_show_the_worst() -> None:
    report = failing()
    found = list(groups(report))
    assert sum(len(group.rows) for group in found) == len(report.rows)
    assert [group.label for group in found][:3] == ["weights", "layer, forced", "layer, free"]
    assert [group.precision for group in found][1:3] == ["float64", "float64"]
    assert all(group.worst.passed == group.passed for group in found)


def test_a_measurement_as_a_sentence() -> None:
    row = Row("", "output", "free", "float32", 2e-4, 8e-7, 1.9e-7, "note", 1e-7)
    assert describe(row) == (
        "the model [output, free, float32]: 2.00e-04 > 8.0e-07 (PyTorch 1.9e-07) (noise 1.0e-07) note"
    )
