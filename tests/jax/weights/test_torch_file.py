"""PyTorch's files in JAX: names and layouts, every dtype, no torch needed for safetensors; what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import t2t_jax
import t2t_torch
from parity.carry.convert import build_ledger
from t2t_jax.weights.torch_file import from_torch, read_torch_file
from tests.support import foreign
from tests.support.jax_models import abstract

CASES = [
    ("t2t_vit_micro", {}),
    ("t2t_vit_micro", {"tokens_type": "transformer", "aux_head": True}),
    ("t2t_vit_micro", {"tokens_type": "convolution"}),
    ("t2t_vit_16_ghost", {"depth": 2}),
    ("t2t_vit_14_se", {"depth": 2}),
    ("t2t_vit_dense", {}),
    ("vit_base_patch32_224_in21k", {"depth": 2}),
    ("deit_tiny_distilled_patch16_224", {"depth": 2}),
]


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_names_and_axes_agree_with_parity(name: str, arguments: dict[str, object]):
    """For every kind of layer: the same name, the same numbers at the same place."""
    with torch.device("meta"):
        shapes = t2t_torch.create_model(name, num_classes=3, **arguments).state_dict()
    numbers = {key: np.arange(value.numel(), dtype=np.float64).reshape(value.shape) for key, value in shapes.items()}
    ledger = build_ledger(shapes, abstract(lambda: t2t_jax.create_model(name, num_classes=3, **arguments)))
    ours = from_torch(numbers)
    assert ours.keys() == {entry.jax for entry in ledger}
    for entry in ledger:
        np.testing.assert_array_equal(ours[entry.jax], entry.to_jax(numbers[entry.torch]))


def micro() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return t2t_torch.create_model("t2t_vit_micro", img_size=32, num_classes=3).state_dict()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_every_number_of_every_dtype(tmp_path: Path, dtype: torch.dtype, suffix: str):
    state = {name: value.to(dtype) for name, value in micro().items()}
    t2t_torch.save_checkpoint(state, tmp_path / f"m{suffix}", metadata={"model": "t2t_vit_micro", "mean": "[0.5]"})
    found = read_torch_file(tmp_path / f"m{suffix}")
    assert found.metadata == {
        "num_classes": 3,
        "in_chans": 3,
        "img_size": 32,
        "model": "t2t_vit_micro",
        "mean": [0.5],
    }
    for name, value in from_torch({name: value.double().numpy() for name, value in state.items()}).items():
        np.testing.assert_array_equal(found.arrays[name].astype(np.float64), value)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_foreign_layouts(tmp_path: Path, suffix: str):
    state, path = micro(), tmp_path / f"m{suffix}"
    content = {f"module.{name}": value for name, value in foreign.timm_pull_request(state).items()}
    if suffix == ".pth":
        torch.save(content, path)
    else:
        safetensors.torch.save_file(content, path)
    found = read_torch_file(path)
    assert found.layout == "timm pull request"
    assert found.arrays.keys() == from_torch({name: value.numpy() for name, value in state.items()}).keys()


def test_safetensors_need_no_torch(tmp_path: Path):
    t2t_torch.save_checkpoint(micro(), tmp_path / "m.safetensors")
    code = f"""
import sys
sys.modules["torch"] = None  # as if it were not installed
import t2t_jax
from t2t_jax.checkpoint import load_weights
model = t2t_jax.create_model("t2t_vit_micro", img_size=48, num_classes=3, in_chans=1)
print(load_weights(model, {str(tmp_path / "m.safetensors")!r}).resized["pos_embed"])
try:
    load_weights(model, {str(tmp_path / "m.pth")!r})
except ValueError as error:
    print(error)
"""
    (tmp_path / "m.pth").write_bytes(b"")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first == "2x2 -> 3x3 (bicubic)"
    assert "m.pth needs PyTorch to read" in second


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_a_truncated_file(tmp_path: Path, length: int):
    t2t_torch.save_checkpoint(micro(), tmp_path / "m.safetensors")
    content = (tmp_path / "m.safetensors").read_bytes()
    (tmp_path / "m.safetensors").write_bytes(content[:length])
    with pytest.raises(ValueError, match=r"m\.safetensors is truncated, corrupt or not a safetensors file") as error:
        read_torch_file(tmp_path / "m.safetensors")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["none.pth", "none.safetensors"])
def test_a_missing_file(tmp_path: Path, name: str):
    with pytest.raises(FileNotFoundError, match=name):
        read_torch_file(tmp_path / name)


def test_safetensors_are_read_in_the_order_of_their_names(tmp_path: Path):
    """The library gives them in an order of chance; with 50 tensors that is never this one."""
    names = [f"block{i:02}.bias" for i in range(50)]
    t2t_torch.save_checkpoint({name: torch.zeros(1) for name in names}, tmp_path / "model.safetensors")
    assert list(read_torch_file(tmp_path / "model.safetensors").arrays) == names


def test_a_weight_without_axes_is_no_matrix(tmp_path: Path):
    safetensors.torch.save_file({"a.weight": torch.tensor(2.0)}, tmp_path / "w.safetensors")
    assert read_torch_file(tmp_path / "w.safetensors").arrays == {"a.weight": 2.0}
