"""Exported models compute what the model computes, at any batch size and for every platform; or nothing is written."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from t2t_common.evaluation.export_check import BATCHES, ExportError
from t2t_common.io import cli
from t2t_jax import export
from t2t_jax.checkpoint import save_model
from t2t_parity.pair import make_pair
from tests.support.families import FAMILIES, SMALL

CONVOLUTION: dict[str, Any] = {**SMALL, "tokens_type": "convolution"}


@pytest.fixture(autouse=True)
def little_compilation() -> Iterator[None]:
    """The programs run once: optimising them would take most of the time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def micro() -> Any:
    return make_pair("t2t_vit_micro", **CONVOLUTION)[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str, tmp_path: Path):
    name, arguments = FAMILIES[family]
    _, model = make_pair(name, **arguments)
    found = export.export_model(model, tmp_path / "model.zip")
    assert [one.images for one in found] == list(BATCHES)
    exported = export.load_exported(tmp_path / "model.zip")
    assert exported.exported.platforms == ("cpu", "cuda", "tpu")
    batch, *shape = exported.exported.in_avals[0].shape
    assert not isinstance(batch, int)
    assert tuple(shape) == (32, 48, model.in_chans)
    facts = exported.metadata
    assert (facts["model"], facts["img_size"], facts["num_classes"]) == (name, [32, 48], model.num_classes)
    assert facts["crop_pct"] == 0.9
    assert len(facts["mean"]) == facts["in_chans"] == model.in_chans


def test_jax_alone_can_read_it(tmp_path: Path):
    model = micro()
    export.export_model(model, tmp_path / "model.zip", metadata={"class_names": ["cat", "dog"]})
    images = np.random.RandomState(1).standard_normal((5, 32, 48, 3)).astype(np.float32)
    program = jax.export.deserialize(bytearray(zipfile.ZipFile(tmp_path / "model.zip").read("model.jax_export")))
    np.testing.assert_allclose(program.call(images), model(images), rtol=1e-4, atol=1e-5)
    exported = export.load_exported(tmp_path / "model.zip")
    np.testing.assert_array_equal(exported(images), program.call(images))
    assert exported.metadata["class_names"] == ["cat", "dog"]
    assert list(tmp_path.iterdir()) == [tmp_path / "model.zip"]


load = export.load_exported


class Wrong(export.ExportedModel):
    """As read from a file, but for one part in 100000."""

    def __call__(self, images: Any) -> jax.Array:
        return super().__call__(images) * np.float32(1 + 1e-5)


def wrong(path: Path) -> export.ExportedModel:
    found = load(path)
    return Wrong(found.exported, found.metadata)


def test_a_wrong_export_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "model.zip"
    path.write_bytes(b"old")
    monkeypatch.setattr(export, "load_exported", wrong)
    with pytest.raises(
        ExportError, match=r"differs from the model: batch 1: error to float64 (1.0e-05|9.[0-9]e-06) \(limit"
    ):
        export.export_model(micro(), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_damaged_and_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "model.zip"
    with pytest.raises(FileNotFoundError, match="no exported model"):
        export.load_exported(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="is not an exported model"):
        export.load_exported(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(export.PROGRAM, bytes(10_000_000))
        archive.writestr(export.METADATA, "{}")
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *args: pytest.fail("it was unpacked"))
    with pytest.raises(ValueError, match="is not an exported model"):
        export.load_exported(path)
    path.write_bytes(b"nonsense")
    monkeypatch.setattr(export, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="an export is limited to 2"):
        export.export_model(micro(), path)
    assert path.read_bytes() == b"nonsense"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    weights, out = tmp_path / "weights", tmp_path / "model.zip"
    metadata = {"model": "t2t_vit_micro", "img_size": [32, 48], "in_chans": 3, "num_classes": 7, "crop_pct": 0.8}
    save_model(weights, micro(), {**metadata, "overrides": {"tokens_type": "convolution"}})
    assert cli.run(export.main, [str(out), "--checkpoint", str(weights)]) == cli.OK
    printed = capsys.readouterr().out
    assert printed.count("error to float64") == len(BATCHES)
    assert "cpu, cuda, tpu" in printed
    assert load(out).metadata["crop_pct"] == 0.8

    before = out.read_bytes()
    monkeypatch.setattr(export, "load_exported", wrong)
    assert cli.run(export.main, [str(out), "--checkpoint", str(weights)]) == cli.FAILED
    assert "differs from the model" in capsys.readouterr().err
    assert out.read_bytes() == before

    for args, message in (
        ([str(tmp_path / "none" / "m.zip"), "--checkpoint", str(weights)], "create the folder"),
        ([str(weights), "--checkpoint", str(weights)], "it is a folder"),
        ([str(out)], "weights are required"),
        ([str(out), "--checkpoint", str(tmp_path / "none")], "no checkpoint at"),
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
