"""Exported models compute what the model computes, at any batch size; or nothing is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import t2t_torch
from parity.carry.random_weights import randomize
from t2t_common.evaluation.export_check import BATCHES, Agreement, ExportError
from t2t_common.io import cli
from t2t_torch import export
from tests.support.families import FAMILIES, SMALL


def make(name: str, **arguments: Any) -> Any:
    """A model in training mode, with weights that leave nothing neutral."""
    model = t2t_torch.create_model(name, **arguments)
    randomize(model)
    return model


def micro() -> Any:
    return make("t2t_vit_micro", **{**SMALL, "tokens_type": "convolution"})


@pytest.mark.parametrize(
    ("family", "suffix"), [*((family, ".onnx") for family in FAMILIES), ("performer", ".pt2"), ("distilled", ".pt2")]
)
def test_every_family(family: str, suffix: str, tmp_path: Path):
    """(An ONNX file is made of what a .pt2 file holds.)"""
    name, arguments = FAMILIES[family]
    model = make(name, **arguments)
    found = export.export_model(model, tmp_path / f"model{suffix}")
    assert [one.images for one in found] == list(BATCHES)
    assert model.training
    exported = export.load_exported(tmp_path / f"model{suffix}")
    images = torch.randn(5, model.in_chans, *model.img_size)
    with torch.inference_mode():
        ours, oracle = model.eval()(images), model.double()(images.double())
    assert Agreement.of(exported(images.numpy()), ours.numpy(), oracle.numpy()).holds
    facts = exported.metadata
    assert (facts["model"], facts["img_size"], facts["num_classes"]) == (name, [32, 48], model.num_classes)
    assert facts["crop_pct"] == 0.9
    assert len(facts["mean"]) == facts["in_chans"] == model.in_chans


def test_onnx_says_what_it_takes(tmp_path: Path):
    export.export_model(micro(), tmp_path / "model.onnx", metadata={"class_names": ["cat", "dog"], "mean": [0.1] * 3})
    program = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(program)
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*program.graph.input, *program.graph.output)
    }
    assert shapes == {"images": ["batch", 3, 32, 48], "logits": ["batch", 7]}
    metadata = export.load_exported(tmp_path / "model.onnx").metadata
    assert metadata["class_names"] == ["cat", "dog"]
    assert metadata["mean"] == [0.1] * 3
    assert list(tmp_path.iterdir()) == [tmp_path / "model.onnx"]


def wrong(path: Path) -> Any:
    exported = load(path)
    return export.ExportedModel(lambda images: exported(images) * np.float32(1 + 1e-5), exported.metadata)


load = export.load_exported


def test_a_wrong_export_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "model.pt2"
    path.write_bytes(b"old")
    monkeypatch.setattr(export, "load_exported", wrong)
    with pytest.raises(
        ExportError, match=r"differs from the model: batch 1: error to float64 (1.0e-05|9.[0-9]e-06) \(limit"
    ):
        export.export_model(micro(), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_damaged_and_other_files(tmp_path: Path):
    for suffix in export.SUFFIXES:
        path = tmp_path / f"model{suffix}"
        with pytest.raises(FileNotFoundError, match="no exported model"):
            export.load_exported(path)
        path.write_bytes(b"nonsense")
        with pytest.raises(ValueError, match="is not an exported model"):
            export.load_exported(path)
    with pytest.raises(ValueError, match=r"has to end with .pt2 or .onnx"):
        export.export_model(micro(), tmp_path / "model.zip")


def test_onnx_has_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(export, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match=r"an ONNX file is limited to 2: export to .pt2"):
        export.export_model(micro(), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    weights, out = tmp_path / "w.safetensors", tmp_path / "model.pt2"
    metadata = {"model": "t2t_vit_micro", "img_size": "[32, 48]", "overrides": '{"tokens_type": "convolution"}'}
    t2t_torch.save_checkpoint(micro(), weights, metadata={**metadata, "crop_pct": "0.8"})
    assert cli.run(export.main, [str(out), "--checkpoint", str(weights)]) == cli.OK
    printed = capsys.readouterr().out
    assert printed.count("error to float64") == len(BATCHES)
    assert load(out).metadata["crop_pct"] == 0.8
    assert load(out)(np.zeros((4, 3, 32, 48), np.float32)).shape == (4, 7)

    before = out.read_bytes()
    monkeypatch.setattr(export, "load_exported", wrong)
    assert cli.run(export.main, [str(out), "--checkpoint", str(weights)]) == cli.FAILED
    assert "differs from the model" in capsys.readouterr().err
    assert out.read_bytes() == before

    for args, message in (
        (["model.zip", "--checkpoint", str(weights)], "has to end with .pt2 or .onnx"),
        ([str(tmp_path / "none" / "m.pt2"), "--checkpoint", str(weights)], "create the folder"),
        ([str(out)], "weights are required"),
        ([str(out), "--checkpoint", str(tmp_path / "none.pth")], "no checkpoint file"),
        ([str(out), "--checkpoint", str(tmp_path)], "parity convert"),
        ([str(out), "--checkpoint", str(weights), "--num-classes", "9"], "no weights for head"),
    ):
        assert cli.run(export.main, args) == cli.MISUSED
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_help(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        cli.run(export.main, ["--help"])
    assert end.value.code in (0, None)
    assert "--checkpoint" in capsys.readouterr().out
