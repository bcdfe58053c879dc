"""Folders of `save_pretrained` as weights of every command of both packages; and what weights say goes with them."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import t2t_jax
import t2t_torch
from t2t_common.io import cli
from t2t_config.weights.hub import CONFIG, WEIGHTS, read_metadata
from t2t_config.weights.metadata import to_text
from t2t_jax.checkpoint import init_weights
from t2t_parity.weight_files import convert

NAME = "t2t_vit_micro"
SIZES: dict[str, Any] = {"img_size": 16, "in_chans": 1, "num_classes": 4}
IMAGES = {"mean": [0.4], "std": [0.2], "crop_pct": 1.0, "interpolation": "bilinear"}
NAMES = ["upper left", "upper right", "lower left", "lower right"]
KNOWN = {**IMAGES, "class_names": NAMES}
"""None of it is the model's own."""

PACKAGES = {"t2t_torch": (t2t_torch, t2t_torch.load_checkpoint), "t2t_jax": (t2t_jax, init_weights)}


def carried(folder: Path) -> dict[str, Any]:
    return {key: value for key, value in read_metadata(folder).items() if key in KNOWN}


def source(tmp_path: Path, form: str) -> Path:
    """Weights that say `KNOWN`."""
    model = t2t_torch.create_model(NAME, **SIZES)
    if form == "hub":
        t2t_torch.save_pretrained(model, tmp_path / "hub", metadata=KNOWN)
        return tmp_path / "hub"
    t2t_torch.save_checkpoint(model, tmp_path / "w.pth", metadata=to_text(KNOWN))
    if form == "folder":
        convert(tmp_path / "w.pth", tmp_path / "folder", NAME)
        return tmp_path / "folder"
    return tmp_path / "w.pth"


@pytest.mark.parametrize(
    ("package", "form"), [("t2t_torch", "w.pth"), ("t2t_torch", "hub"), ("t2t_jax", "w.pth"), ("t2t_jax", "folder")]
)
def test_a_loaded_model_is_saved_with_what_its_weights_say(tmp_path: Path, package: str, form: str):
    module, load = PACKAGES[package]
    model = module.create_model(NAME, **SIZES)
    load(model, source(tmp_path, form))
    module.save_pretrained(model, tmp_path / "out")
    assert carried(tmp_path / "out") == KNOWN
    again = module.from_pretrained(tmp_path / "out")
    module.save_pretrained(again, tmp_path / "again")
    assert carried(tmp_path / "again") == KNOWN
    module.save_pretrained(again, tmp_path / "other", metadata={"crop_pct": 0.5})
    assert carried(tmp_path / "other") == KNOWN | {"crop_pct": 0.5}


@pytest.mark.parametrize("package", PACKAGES)
def test_what_does_not_fit_the_model_stays_behind(tmp_path: Path, package: str):
    """Other channels take the model's own figures, other classes have other names."""
    module, load = PACKAGES[package]
    path = source(tmp_path, "w.pth")
    model = module.create_model(NAME, **SIZES | {"in_chans": 3, "num_classes": 7})
    load(model, path)
    module.save_pretrained(model, tmp_path / "out")
    own = read_metadata(tmp_path / "out")
    assert len(own["mean"]) == len(own["std"]) == 3
    assert (own["crop_pct"], own["interpolation"], own.get("class_names")) == (1.0, "bilinear", None)
    t2t_torch.save_checkpoint(t2t_torch.create_model(NAME, **SIZES), tmp_path / "silent.pth")
    model = module.create_model(NAME, **SIZES)
    for weights in (path, tmp_path / "silent.pth"):  # the last ones say nothing
        load(model, weights)
    module.save_pretrained(model, tmp_path / "last")
    assert "class_names" not in read_metadata(tmp_path / "last")
    assert read_metadata(tmp_path / "last")["crop_pct"] == 0.9


def test_models_that_differ_in_this_alone_are_the_same_to_a_compiler(tmp_path: Path):
    """Or every program would be compiled anew."""
    model = t2t_jax.create_model(NAME, **SIZES)
    before = model.spec
    init_weights(model, source(tmp_path, "w.pth"))
    assert model.spec.carried
    assert (model.spec, hash(model.spec)) == (before, hash(before))


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As another tool may write it: config.json says it all, the weights nothing."""
    folder = tmp_path_factory.mktemp("hub [1]")
    model = t2t_torch.create_model(NAME, **SIZES, qk_scale=0.3)
    t2t_torch.save_pretrained(model, folder, metadata=KNOWN)
    t2t_torch.save_checkpoint(model, folder / WEIGHTS)
    Image.fromarray(np.random.RandomState(0).randint(0, 255, (20, 24), np.uint8)).save(folder.parent / "a.png")
    return folder


def main(package: str, command: str) -> Callable[[Any], int]:
    return importlib.import_module(f"{package}.{command}").main


@pytest.mark.parametrize("package", PACKAGES)
def test_predict_and_evaluate_take_a_folder(
    hub: Path, package: str, idx_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    args = [str(hub.parent / "a.png"), "--checkpoint", str(hub), "--json", str(tmp_path / "p.json")]
    assert cli.run(main(package, "predict"), args) == cli.OK
    found = json.loads((tmp_path / "p.json").read_text())
    assert {key: found["preprocessing"][key] for key in IMAGES} == IMAGES
    assert found["predictions"][0]["top"][0]["name"] in NAMES
    args = ["--checkpoint", str(hub), "--data", str(idx_folder)]
    assert cli.run(main(package, "evaluate"), args) == cli.OK
    assert "top-1" in capsys.readouterr().out.lower()


@pytest.mark.parametrize("package", PACKAGES)
def test_visualize_and_export_take_a_folder(hub: Path, package: str, tmp_path: Path):
    args = [str(hub.parent / "a.png"), "--checkpoint", str(hub), "--out", str(tmp_path / "pictures")]
    assert cli.run(main(package, "visualize"), args) == cli.OK
    assert (tmp_path / "pictures" / "index.html").is_file()
    out = tmp_path / ("m.pt2" if package == "t2t_torch" else "m.jax_export")
    assert cli.run(main(package, "export"), [str(out), "--checkpoint", str(hub)]) == cli.OK
    metadata = importlib.import_module(f"{package}.export").load_exported(out).metadata
    assert {key: metadata[key] for key in KNOWN} == KNOWN
    assert metadata["overrides"] == {"qk_scale": 0.3}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_folder_without_or_with_a_damaged_configuration(
    hub: Path, package: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / WEIGHTS).write_bytes((hub / WEIGHTS).read_bytes())
    for content, says in ((None, f"no {CONFIG} in"), ("{", f"cannot read {tmp_path / CONFIG}")):
        if content is not None:
            (tmp_path / CONFIG).write_text(content)
        args = [str(hub.parent / "a.png"), "--checkpoint", str(tmp_path), "--model", NAME]
        assert cli.run(main(package, "predict"), args) == cli.MISUSED
        err = capsys.readouterr().err
        assert says in err
        assert err.count("\n") == 1
