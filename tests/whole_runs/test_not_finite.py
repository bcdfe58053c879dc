"""Weights that are NaN or infinite: a warning by name where they are used, a refusal where a run starts from them."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import t2t_torch
from t2t_common.io import cli
from t2t_config import recipe

PACKAGES = ("t2t_torch", "t2t_jax")


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    model: Any = t2t_torch.create_model("t2t_vit_micro", img_size=16, in_chans=1, num_classes=4)
    with torch.no_grad():
        model.head.bias[1] = float("nan")
        model.blocks[0].norm1.weight[0] = float("inf")
    t2t_torch.save_pretrained(model, tmp_path / "hub")
    return tmp_path / "hub" / "model.safetensors"


def command(package: str, name: str) -> Callable[[Any], int]:
    return importlib.import_module(f"{package}.{name}").main


@pytest.mark.parametrize("package", PACKAGES)
def test_evaluate_warns_by_name(damaged: Path, package: str, idx_folder: Path, capsys: pytest.CaptureFixture[str]):
    args = ["--checkpoint", str(damaged), "--data", str(idx_folder)]
    assert cli.run(command(package, "evaluate"), args) == cli.OK
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert "NaN or infinity" in line
    assert "head.bias" in line
    assert "blocks.0.norm1." in line
    assert "blocks.1" not in line


@pytest.mark.parametrize("package", PACKAGES)
def test_predict_warns_by_name(damaged: Path, package: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from PIL import Image

    Image.new("L", (20, 20), 9).save(tmp_path / "a.png")
    assert cli.run(command(package, "predict"), [str(tmp_path / "a.png"), "--checkpoint", str(damaged)]) == cli.OK
    assert "warning: " in (err := capsys.readouterr().err)
    assert "head.bias" in err


@pytest.mark.parametrize("package", PACKAGES)
def test_no_run_starts_from_them(damaged: Path, package: str):
    chosen = dataclasses.replace(recipe("digits"), model="t2t_vit_micro")
    prepare = importlib.import_module(f"{package}.train").prepare
    with pytest.raises(
        ValueError, match=r"model\.safetensors holds NaN or infinity in .*norm1\..*: it cannot be trained"
    ):
        prepare(chosen, init_from=damaged)
