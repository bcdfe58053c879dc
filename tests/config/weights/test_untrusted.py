"""Models as the metadata of strangers describe them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from t2t_config import list_models
from t2t_config.weights.metadata import create_arguments, describe
from t2t_config.weights.untrusted import ALWAYS, MAX_EXPANSION, check_metadata, check_size, check_table, making

WRONG: dict[str, list[Any]] = {
    "model": [3, ["t2t_vit_14"], "x" * 5000],
    "img_size": [0, -1, 10**9, [1, 2, 3], [], "224", float("nan"), True],
    "in_chans": [0, 1.5, 10**6],
    "num_classes": [-1, 10**9, "3"],
    "overrides": [
        [],
        {"depth": 10**6},
        {"depth": None},
        {"depth": "x"},
        {"pretrained": True},
        {"name": "x"},
        {"a": {}},
    ],
    "aux_head": [1, "yes"],
    "mean": [0.5, ["x"], [float("inf")], [10**400]],
    "std": ["0.5"],
    "crop_pct": ["1", [1], float("nan")],
    "interpolation": [3, "bi\ncubic"],
    "class_names": ["abc", [1], {"0": "a"}],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_metadata_of_a_wrong_kind_are_named(key: str, value: Any):
    with pytest.raises(ValueError, match=f"the weights say {key} .* instead of "):
        check_metadata({"model": "t2t_vit_14", key: value})


@pytest.mark.parametrize("name", list_models())
def test_what_we_write_ourselves_is_right(name: str):
    metadata = json.loads(json.dumps(describe(name, img_size=(64, 96), aux_head=False)))
    metadata["overrides"].pop("aux_head")
    check_metadata({**metadata, "class_names": ["a"], "recipe": None})
    check_table(create_arguments(metadata), 10**6)


def test_a_model_far_larger_than_its_file_is_refused():
    check_size(ALWAYS, 0)
    check_size(MAX_EXPANSION * ALWAYS, ALWAYS)
    with pytest.raises(ValueError, match=r"a model of 1,000,000,000 bytes is not in a file of 1,000"):
        check_size(10**9, 1000)
    for sizes in ({"img_size": 16_000}, {"patch_size": 1, "img_size": 4096}, {"embed_dim": 60_000, "img_size": 1024}):
        with pytest.raises(ValueError, match=r"a model of .* bytes is not in a file of 1,000"):
            check_table({"name": "vit_small_patch16_224", **sizes}, 1000)
    with pytest.raises(ValueError, match="10000 blocks"):
        check_table({"name": "t2t_vit_dense", "block_config": [10_000]}, 1000)


def test_whatever_is_raised_names_the_file():
    for error, says in ((ValueError("odd"), "w.pth: odd"), (ValueError("w.pth is"), "w.pth is")):
        with pytest.raises(ValueError, match=re.escape(says)), making(Path("w.pth")):
            raise error
    says = r"w.pth describes an invalid model \(division by zero\)"
    with pytest.raises(ValueError, match=says), making(Path("w.pth")):
        _ = 1 / 0
