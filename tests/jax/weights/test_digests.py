"""Digests of arrays and of checkpoint folders; PyTorch's are the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from t2t_config.weights.digests import DamagedError
from t2t_jax.weights.digests import FILE, array_digests, check_folder, tree_digests, write_digests
from t2t_torch.weights.digests import tensor_digests


def test_both_frameworks_have_the_same():
    tensors = {
        "matrix": torch.arange(6.0).reshape(2, 3),
        "turned": torch.arange(6.0).reshape(2, 3).T,
        "half": torch.ones(3, dtype=torch.float16),
        "count": torch.tensor(3),
        "flags": torch.tensor([True, False]),
        "empty": torch.empty(0, 5),
        "complex": torch.tensor([1 + 2j]).conj(),
    }
    arrays = {name: tensor.resolve_conj().numpy() for name, tensor in tensors.items()}
    assert array_digests(arrays) == tensor_digests(tensors)
    assert array_digests({"b": np.ones(3, ml_dtypes.bfloat16)}) == tensor_digests({"b": torch.ones(3).bfloat16()})
    assert array_digests({"b": np.arange(3, dtype=">i4")}) == tensor_digests({"b": torch.arange(3, dtype=torch.int32)})


def test_names_in_a_tree():
    found = tree_digests({"train": {"opt": [np.ones(2), (np.ones(3),)], "step": np.int32(3)}})
    assert found["train"].keys() == {"opt/0", "opt/1/0", "step"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for item in ("model", "ema"):
        (tmp_path / item / "d").mkdir(parents=True)
        (tmp_path / item / "d" / "x").write_bytes(b"content")
    (tmp_path / "_METADATA").write_text("{}")
    assert check_folder(tmp_path) is None
    write_digests(tmp_path, {"model": {"a": "1"}})
    return tmp_path


def test_files_are_compared(folder: Path):
    assert check_folder(folder) == {"model": {"a": "1"}}
    (folder / "notes.txt").write_text("of mine")  # is nobody's
    (folder / "ema" / "d" / "x").write_bytes(b"Content")
    assert check_folder(folder, ["model"]) is not None
    for items in (None, ["ema"]):
        with pytest.raises(DamagedError, match=r"^ema/d/x is not as saved \(SHA-256\)$"):
            check_folder(folder, items)
    (folder / "_METADATA").unlink()
    with pytest.raises(DamagedError, match=r"^_METADATA is missing$"):
        check_folder(folder, ["model"])


@pytest.mark.parametrize(
    "saved", [[], {"files": {}}, {"files": [], "tensors": {}}, {"files": {"a": 1}, "tensors": {}}, "[" * 10**5]
)
def test_digests_that_are_none(saved: Any, folder: Path):
    (folder / FILE).write_text(saved if isinstance(saved, str) else json.dumps(saved))
    with pytest.raises(DamagedError):
        check_folder(folder)


def test_nothing_outside_of_the_folder_is_read(folder: Path, tmp_path_factory: pytest.TempPathFactory):
    outside = tmp_path_factory.mktemp("outside") / "file"
    outside.write_text("secret")
    (folder / "link").symlink_to(outside)
    for name in (str(outside), f"../{outside.parent.name}/file", "link"):
        (folder / FILE).write_text(json.dumps({"files": {name: "0" * 64}, "tensors": {}}))
        with pytest.raises(DamagedError, match=r"is missing$"):
            check_folder(folder)
