"""Names of classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from t2t_config.class_names import class_names, imagenet_classes


def test_imagenet_is_in_the_order_of_the_head():
    """Class i is the i-th folder of ImageNet in alphabetical order; some numbers that everybody knows."""
    classes = imagenet_classes()
    assert len(classes) == 1000
    assert list(classes) == sorted(classes)
    assert all(len(wnid) == 9 and wnid[0] == "n" for wnid in classes)
    names = class_names(1000)
    assert names == list(classes.values())
    known = {0: "tench, Tinca tinca", 207: "golden retriever", 281: "tabby, tabby cat", 985: "daisy"}
    known |= {134: "crane", 517: "crane", 999: "toilet tissue, toilet paper, bathroom tissue"}
    assert {index: names[index] for index in known} == known


def test_the_notice_of_wordnet_goes_along():
    text = (Path(__file__).parents[2] / "t2t_config" / "imagenet_classes.tsv").read_text()
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in text


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.txt", "cat\ndog \n"), ("a.json", '["cat", "dog"]'), ("a.json", '{"1": "dog", "0": "cat"}')],
)
def test_a_file_wins(tmp_path: Path, name: str, text: str):
    (tmp_path / name).write_text(text)
    assert class_names(2, file=tmp_path / name, saved=["x", "y"]) == ["cat", "dog"]


def test_saved_names_then_imagenet_then_numbers():
    assert class_names(2, saved=["cat", "dog"]) == ["cat", "dog"]
    assert class_names(3, saved=["cat", "dog"]) == ["cat", "dog", "class 2"]
    assert class_names(2, saved=["n01440764", "n99999999"]) == ["tench, Tinca tinca", "n99999999"]
    assert class_names(18)[17] == "class 17"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "cat", r"holds 1 class names, the model has 2"),
        ("a.json", "{", r"cannot read the class names"),
        ("a.json", json.dumps([1, 2]), r"does not contain a JSON list of names"),
        ("a.json", json.dumps({"cat": 0, "dog": 1}), r"cannot read the class names"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, text: str, message: str):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        class_names(2, file=tmp_path / name)
    with pytest.raises(FileNotFoundError, match="no file of class names"):
        class_names(2, file=tmp_path / "none")


def test_brackets_without_end(tmp_path: Path):
    (tmp_path / "names.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"cannot read the class names in .*names.json"):
        class_names(3, file=tmp_path / "names.json")


@pytest.mark.parametrize("saved", [5, "abc", {"0": "a"}])
def test_saved_names_that_are_no_list(saved: Any):
    with pytest.raises(ValueError, match=r"the weights name their classes .*, no list: give a file of names"):
        class_names(3, saved=saved)
