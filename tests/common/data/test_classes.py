"""Classes of the data and outputs of a model are brought together by name."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2t_common.data.classes import MappedSource, for_head, for_run, in_order, other_order
from t2t_common.data.readers.sources import ArraySource, Source
from t2t_config.class_names import imagenet_classes, match_classes

WNIDS = list(imagenet_classes())


def data(names: Sequence[str] | None, count: int | None = None) -> ArraySource:
    """One image of each class."""
    count = count or len(names or ())
    images = np.zeros((count, 4, 4), np.uint8)
    return ArraySource(images, np.arange(count), count, None if names is None else list(names))


def labels(source: Source) -> list[int]:
    return [source[index][1] for index in range(len(source))]


def test_names_are_matched_once_each():
    assert match_classes(["b", "a"], ["a", "x", "b"]) == [2, 0]
    assert match_classes(["a", "c"], ["a", "b"]) is None
    assert match_classes(["a", "a"], ["a", "b"]) is None
    assert match_classes(["a"], ["a", "a"]) is None
    assert match_classes(["a", "a"], ["a", "a"]) == [0, 1]  # nothing to bring together
    assert match_classes(["n01443537"], ["tench, Tinca tinca", "goldfish, Carassius auratus"]) == [1]
    assert match_classes(["a\\x1b"], ["a\x1b"]) == [0]  # as earlier checkpoints hold it


NAME_LISTS = st.lists(
    st.sampled_from(["cat", "dog", "emu", "yak", WNIDS[0], "tench, Tinca tinca"]), min_size=1, max_size=5
)


@given(NAME_LISTS, NAME_LISTS)
def test_no_label_is_ever_another_name(ours: list[str], theirs: list[str]):
    """Any two lists: every label is the output of its own name, or none is taken."""
    words = imagenet_classes()
    distinct = len(set(ours)) == len(ours) and len(set(theirs)) == len(theirs)
    found: Source | None = None
    with contextlib.suppress(ValueError):
        found, _ = for_head(data(ours), len(theirs), theirs)
    if found is None:
        assert not (distinct and set(ours) <= set(theirs))
        return
    for name, place in zip(ours, labels(found), strict=True):
        assert words.get(name, name) == words.get(theirs[place], theirs[place])


def test_another_order_is_mapped():
    source, notes = for_head(data(["dog", "cat"]), 2, ["cat", "dog"])
    assert labels(source) == [1, 0]
    assert source.class_names == ["cat", "dog"]
    assert notes == ["classes are mapped by name: dog is output 1, cat is output 0"]
    assert labels(data(["dog", "cat"])) == [0, 1]


def test_some_of_the_classes():
    source, _ = for_head(data(["emu", "cat"]), 3, ["cat", "dog", "emu"])
    assert (labels(source), source.num_classes) == ([2, 0], 3)


def test_the_same_classes_are_left_alone():
    source = data(["cat", "dog"])
    assert for_head(source, 2, ["cat", "dog"]) == (source, [])


def test_others_are_refused_with_both_lists():
    with pytest.raises(
        ValueError, match=r"not those of the weights .2 of the weights: cat, dog; 2 of the data: cat, emu"
    ):
        for_head(data(["cat", "emu"]), 2, ["cat", "dog"])
    with pytest.raises(ValueError, match="the data has 3 classes, the model 2: set --num-classes 3"):
        for_head(data(["cat", "emu", "yak"]), 2, ["cat", "dog"])


def test_names_that_the_user_gives():
    source, _ = for_head(data(["emu", "cat"]), 2, None, ["cat", "emu"])
    assert labels(source) == [1, 0]
    source, _ = for_head(data(["emu", "cat"]), 2, ["0", "1"], ["cat", "emu"])
    assert labels(source) == [1, 0]


@pytest.mark.parametrize(
    ("names", "saved", "note"),
    [
        (None, ["cat", "dog"], "the data does not name its classes"),
        (["cat", "dog"], None, "the weights do not name their classes"),
        (None, None, "the data does not name its classes"),
    ],
)
def test_what_cannot_be_compared_is_told(names: list[str] | None, saved: list[str] | None, note: str):
    source = data(names, 2)
    found, notes = for_head(source, 2, saved)
    assert found is source
    assert notes == [f"{note}: label N of the data is used as output N of the model"]


def test_published_weights_know_imagenets_classes():
    """They name none, and have 1000."""
    source, notes = for_head(data(WNIDS), 1000)
    assert (labels(source), notes) == (list(range(1000)), [])
    source, _ = for_head(data([WNIDS[7], WNIDS[3]]), 1000)  # some of the folders, as ImageNette has
    assert labels(source) == [7, 3]
    source, notes = for_head(data([str(label) for label in range(1000)]), 1000)  # as ImageNetV2
    assert labels(source) == list(range(1000))
    assert notes[0].startswith("the data numbers its 1000 classes")
    assert for_head(data(WNIDS[:2]), 2)[1][0].startswith("the weights do not name their classes")
    assert for_head(data(["cat", "dog"]), 1000)[1][0].startswith("the weights do not name their classes")
    with pytest.raises(ValueError, match=r"1000 of the weights: n01440764.*; 2 of the data: n01440764, n99999999"):
        for_head(data([WNIDS[0], "n99999999"]), 1000)
    with pytest.raises(ValueError, match="10 of the data: 0, 1"):
        for_head(data([str(label) for label in range(10)]), 1000, WNIDS)


def test_a_run_goes_on_as_it_began():
    train, val, notes = for_run(data(["2", "10"]), data(["2", "10"]), 2, begun=["10", "2"], head=None)
    assert (labels(train), labels(val), train.class_names) == ([1, 0], [1, 0], ["10", "2"])
    assert notes == ["classes are numbered as at the start of the run: 0 10, 1 2"]
    with pytest.raises(ValueError, match=r"started with other classes .2 of the run: 10, 3; those of the data: 2, 10"):
        for_run(data(["2", "10"]), data(["2", "10"]), 2, begun=["10", "3"], head=None)


def test_a_run_takes_a_classifier_with_its_classes():
    train, val, _ = for_run(data(["b", "a"]), data(["b", "a"]), 2, begun=None, head=["a", "b"])
    assert (labels(train), labels(val), train.class_names) == ([1, 0], [1, 0], ["a", "b"])
    with pytest.raises(ValueError, match=r"2 of the weights: a, c; 2 of the data: b, a.*--fresh-head"):
        for_run(data(["b", "a"]), data(["b", "a"]), 2, begun=None, head=["a", "c"])
    source = data(["b", "a"])
    assert for_run(source, source, 2, begun=None, head=None) == (source, source, [])


def test_whether_a_run_began_in_another_order():
    assert other_order(["10", "2"], ["2", "10"]) == ["10", "2"]
    assert other_order(["2", "10"], ["2", "10"]) is None
    assert other_order(None, ["2", "10"]) is None
    assert other_order(["a"], None) is None
    assert other_order(["a\x1b"], ["a\\x1b"]) is None


def test_a_mapped_source():
    source, _ = in_order(data(["b", "a"]), ["a", "b", "c"])
    assert isinstance(source, MappedSource)
    assert (len(source), source.class_names, source[0][0].size) == (2, ["a", "b", "c"], (4, 4))
