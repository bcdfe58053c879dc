"""Digests in PyTorch's files; every format is flipped bit by bit in tests/tools/reliability/test_flips.py."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch

from t2t_common.io import zips
from t2t_config.weights.digests import DamagedError
from t2t_torch.checkpoint_file import read_checkpoint
from t2t_torch.weights.digests import check_content, content_digests, tensor_digests, torch_bytes
from t2t_torch.weights.safe_unpickle import read_pickle

WEIGHTS = {"head.weight": torch.arange(6.0).reshape(2, 3), "head.bias": torch.ones(2)}


def with_digests_of(written: dict[str, torch.Tensor], others: dict[str, torch.Tensor], path: Path) -> Path:
    """A file that holds `written` and the digests of `others`."""
    file = io.BytesIO()
    torch.save(written, file)
    zips.add_digests(file, content_digests(others))
    path.write_bytes(file.getvalue())
    return path


def test_name_dtype_shape_and_numbers_count() -> None:
    x = torch.arange(6.0)
    found = {
        *tensor_digests({"a": x}).values(),
        *tensor_digests({"b": x}).values(),
        *tensor_digests({"a": x.reshape(2, 3)}).values(),
        *tensor_digests({"a": x.double()}).values(),
        *tensor_digests({"a": -x}).values(),
    }
    assert len(found) == 5
    assert tensor_digests({"a": x[::2]}) == tensor_digests({"a": x[::2].clone()})
    with pytest.raises(ValueError, match="a is not a dense tensor"):
        tensor_digests({"a": x.to_sparse()})


def test_what_was_written_is_what_is_read(tmp_path: Path) -> None:
    (path := tmp_path / "w.pth").write_bytes(torch_bytes({"state_dict": WEIGHTS, "step": 3}))
    content = read_pickle(path)
    assert check_content(path, content) == "sha256"
    with pytest.raises(DamagedError, match=r"^step/\* is not as saved"):
        check_content(path, {**content, "step": 4})
    assert check_content(path, {**content, "step": 4}, {"state_dict"}) == "sha256"  # only what is asked for


def test_a_bare_state_dict_is_compared_as_a_whole(tmp_path: Path) -> None:
    path = with_digests_of(WEIGHTS, WEIGHTS, tmp_path / "w.pth")
    assert read_checkpoint(path).verified == "sha256"
    other = {**WEIGHTS, "head.bias": torch.zeros(2)}
    with pytest.raises(ValueError, match=r"head\.bias is not as saved \(SHA-256\)"):
        read_checkpoint(with_digests_of(other, WEIGHTS, path))
    with pytest.raises(ValueError, match=r"head\.bias is not among what was saved"):
        read_checkpoint(with_digests_of(WEIGHTS, {"head.weight": WEIGHTS["head.weight"]}, path))
