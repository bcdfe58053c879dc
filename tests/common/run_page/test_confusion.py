from __future__ import annotations

import numpy as np

from t2t_common.run_page.confusion import MOST_CLASSES, MOST_PAIRS, SHADES, Confusion, dense, pairs, sparse
from tests.support.pages.recorded_runs import CONFUSION

NAMES = ["wren", "robin", "sparrow"]


def test_few_classes_are_a_table():
    found = Confusion.of(CONFUSION, NAMES)
    assert [row.name for row in found.table] == NAMES
    assert [row.accuracy for row in found.table] == [90.0, 50.0, 100.0]
    assert [[cell.images for cell in row.cells] for row in found.table] == CONFUSION.tolist()
    assert [[cell.right for cell in row.cells] for row in found.table] == np.eye(3, dtype=bool).tolist()
    assert found.table[1].cells[0].text == "robin taken for wren: 4 of 10"
    assert found.worst == ()


def test_shades_follow_the_share_that_is_right_and_the_number_of_mistakes():
    """The square root of a mistake's share of the worst one: 1 of 4 is half as dark."""
    shades = [[cell.shade for cell in row.cells] for row in Confusion.of(CONFUSION, NAMES).table]
    assert shades == [[SHADES, SHADES // 2, 0], [SHADES, SHADES // 2, SHADES // 2], [0, 0, SHADES]]


def test_a_class_without_images_has_no_accuracy():
    table = Confusion.of(np.diag([3, 0, 2]), NAMES).table
    assert [row.accuracy for row in table] == [100.0, None, 100.0]
    assert [cell.shade for cell in table[1].cells] == [0, 0, 0]


def test_mistakes_are_sorted_with_their_share_of_the_class():
    found = [(pair.name, pair.taken_for, pair.images, pair.share) for pair in pairs(CONFUSION, NAMES)]
    assert found == [("robin", "wren", 4, 40.0), ("wren", "robin", 1, 10.0), ("robin", "sparrow", 1, 10.0)]


def test_many_classes_are_mistakes_and_the_worst_classes():
    classes = MOST_CLASSES + 1
    matrix = np.full((classes, classes), 1) + np.diag(range(classes))
    found = Confusion.of(matrix, [str(index) for index in range(classes)])
    assert found.table == ()
    assert len(found.pairs) == MOST_PAIRS
    assert [one.name for one in found.worst][:3] == ["0", "1", "2"]
    assert Confusion.of(np.diag([5] * classes), [""] * classes) == Confusion((), [], [])


def test_what_is_not_zero_is_kept():
    assert sparse(CONFUSION)[:3] == [[0, 0, 9], [0, 1, 1], [1, 0, 4]]
    np.testing.assert_array_equal(dense(sparse(CONFUSION), 3), CONFUSION)
