"""What digests tell apart, and what is said where they differ."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from t2t_config.weights.digests import DamagedError, compare, of_file, of_json, of_tensor, open_texts, seal_texts

ARGUMENTS = {"name": "a", "dtype": "float32", "shape": (2, 1), "data": bytes(8)}


@pytest.mark.parametrize(
    "change", [{"name": "b"}, {"dtype": "int32"}, {"shape": (1, 2)}, {"shape": (2,)}, {"data": bytes(7) + b"\x80"}]
)
def test_everything_of_a_tensor_counts(change: dict[str, Any]):
    assert of_tensor(**ARGUMENTS) != of_tensor(**{**ARGUMENTS, **change})
    assert of_tensor(**ARGUMENTS) == hashlib.sha256(b'["a", "float32", [2, 1]]' + bytes(8)).hexdigest()


def test_json_and_files(tmp_path: Path):
    assert of_json({"a": 1, "b": [2.5, None]}) == of_json({"b": [2.5, None], "a": 1}) != of_json({"a": 1})
    (tmp_path / "f").write_bytes(b"content")
    assert of_file(tmp_path / "f") == hashlib.sha256(b"content").hexdigest()


def test_what_differs_is_named():
    compare({"a": "1"}, {"a": "1"})
    with pytest.raises(DamagedError, match=r"^b is not as saved \(SHA-256\); c is missing; d\\nd is not among what"):
        compare({"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "x", "d\nd": "4"})
    with pytest.raises(DamagedError, match=r"^a, b, c and 2 more are missing$"):
        compare(dict.fromkeys("abcde", "1"), {})


@pytest.mark.parametrize("saved", [None, [], "text", {"a": 1}, {"a": {"b": "c"}}])
def test_digests_that_are_none(saved: Any):
    with pytest.raises(DamagedError):
        compare(saved, {})
    with pytest.raises(DamagedError):
        open_texts({"sha256": json.dumps(saved)}, dict)


def test_texts_of_a_safetensors_file():
    tensors = {"a": "1", "metadata": "2"}
    texts = seal_texts({"model": "m", "sha256": "old"}, tensors)
    assert texts.keys() == {"model", "sha256"}
    assert open_texts(texts, lambda: tensors) == ({"model": "m"}, "sha256")
    assert open_texts({"model": "m"}, lambda: pytest.fail("nothing to compare")) == ({"model": "m"}, "")
    for change in ({"model": "n"}, {"other": "x"}, {"sha256": "{"}, {"sha256": "[" * 10**5}):
        with pytest.raises(DamagedError):
            open_texts({**texts, **change}, lambda: tensors)
    with pytest.raises(DamagedError, match=r"^a is missing$"):
        open_texts(texts, lambda: {"metadata": "2"})
    with pytest.raises(DamagedError, match="its key sha256 is missing"):
        open_texts({"model": "m", "sha25v": texts["sha256"]}, lambda: tensors)
