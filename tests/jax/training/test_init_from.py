"""Weights that a run starts from, and the classes of their classifier. Twin: tests/torch/training/test_init_from.py."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2t_common.io import cli
from t2t_common.run.save_policy import Saving
from t2t_common.workdir.record import Record
from t2t_config import Recipe
from t2t_config.weights.metadata import describe_model
from t2t_jax import create_model
from t2t_jax import train as training
from t2t_jax.checkpoint import load_model_state, save_model
from t2t_jax.train import prepare, train
from t2t_jax.training.init_from import saved_classes

NAMES = ["10", "2", "9"]
"""In the order of runs of old."""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four images of each class, as bright as its number."""
    for split in ("train", "val"):
        for name in NAMES:
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for number in range(4):
                Image.new("L", (16, 16), 20 * int(name) + number).save(folder / f"{number}.png")
    return tmp_path / "data"


@pytest.fixture
def small(recipe: Recipe, data: Path) -> Recipe:
    return dataclasses.replace(recipe, data=str(data), epochs=2, cooldown_epochs=0, batch_size=4, checkpoint_every=1)


def weights(path: Path, class_names: list[str]) -> Path:
    model = create_model("t2t_vit_micro", img_size=16, in_chans=1, num_classes=len(class_names))
    save_model(path, model, describe_model(model, {"class_names": class_names}))
    return path


def test_a_classifier_keeps_its_classes(small: Recipe, tmp_path: Path):
    own = prepare(small)
    run = prepare(small, init_from=weights(tmp_path / "w", NAMES))
    assert own.metadata["class_names"] == ["2", "9", "10"]
    assert run.metadata["class_names"] == NAMES
    assert any("mapped by name" in note or "natural order" in note for note in run.notes)
    for prepared, names in ((own, ["2", "9", "10"]), (run, NAMES)):
        batch = next(prepared.iterator)
        brightness = [round(float(np.asarray(image).mean() * 0.2 + 0.4) * 255 / 20) for image in batch["image"]]
        for label, value in zip(np.asarray(batch["label"]).tolist(), brightness, strict=True):
            assert abs(int(names[label]) - value) <= 2


def test_other_classes_need_a_new_classifier(small: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = weights(tmp_path / "w", ["a", "b", "c"])
    lists = "3 of the weights: a, b, c; 3 of the data: 2, 9, 10"
    with pytest.raises(ValueError, match=f"{lists}.*--fresh-head"):
        prepare(small, init_from=path)
    fresh, own = prepare(small, init_from=path, fresh_head=True), prepare(small)
    saved = load_model_state(path).arrays
    for name, value in fresh.state.raw.items():
        assert np.array_equal(value, own.state.raw[name] if name.startswith("head") else saved[name]), name
    assert fresh.started_from is not None
    assert set(fresh.started_from.missing) == {"head.kernel", "head.bias"}
    assert fresh.metadata["class_names"] == ["2", "9", "10"]
    args = ["digits", "--data", str(small.data), "--model", "t2t_vit_micro", "--img-size", "16", "--in-chans", "1"]
    args += ["--batch-size", "4", "--init-from", str(path), "--workdir", str(tmp_path / "run")]
    assert cli.run(training.main, args) == 2
    assert lists in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_another_number_of_classes_starts_anew(small: Recipe, tmp_path: Path):
    run = prepare(small, init_from=weights(tmp_path / "w", ["a", "b"]))
    assert run.metadata["class_names"] == ["2", "9", "10"]


def test_a_run_goes_on_in_the_order_in_which_it_began(
    small: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """One that began when folders were sorted by letters sees the same images with the same labels. That it ends bit
    for bit as it would have is shown by its twin, whose steps need no compilation."""
    stopped = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr("t2t_common.data.folders.natural_key", lambda name: name)  # as it was
        old = prepare(small)
        patch.setattr(Saving, "after_epoch", stop_after())
        with pytest.raises(KeyboardInterrupt):
            train(small, stopped)
    for before, now in zip(old.iterator, prepare(small, class_names=NAMES).iterator, strict=True):
        assert all(np.array_equal(before[name], now[name]) for name in before)
    capsys.readouterr()
    train(small, stopped)
    said = capsys.readouterr().out
    assert "classes are numbered as at the start of the run: 0 10, 1 2, 2 9" in said
    assert "continuing at step 3 of 6" in said
    record = Record.read(stopped)
    assert record is not None
    assert record.config["class_names"] == NAMES
    (tmp_path / "data" / "train" / "9").rename(tmp_path / "data" / "train" / "8")
    (tmp_path / "data" / "val" / "9").rename(tmp_path / "data" / "val" / "8")
    with pytest.raises(ValueError, match=r"10, 2, 9.*2, 8, 10"):
        train(small, stopped)


def test_a_run_that_goes_on_needs_no_classifier_any_more(small: Recipe, tmp_path: Path):
    """One that began before names were compared may have started from weights of other classes."""
    path = weights(tmp_path / "w", ["a", "b", "c"])
    workdir = tmp_path / "run"
    weights(workdir, NAMES)
    assert saved_classes(workdir) == NAMES
    assert saved_classes(tmp_path / "nowhere") is None
    assert prepare(small, init_from=path, class_names=saved_classes(workdir)).metadata["class_names"] == NAMES


def test_a_damaged_checkpoint_does_not_hide_the_classes(tmp_path: Path):
    (tmp_path / "checkpoints").mkdir()
    older, latest = (weights(tmp_path / "checkpoints" / name, NAMES) for name in ("2", "10"))
    for path in [latest, *latest.rglob("*")]:
        if path.is_file():
            path.write_bytes(b"")
    assert saved_classes(tmp_path) == NAMES
    assert older.exists()


def stop_after():
    """`Saving.after_epoch` that stops the run after the first epoch's checkpoint."""
    original = Saving.after_epoch

    def after_epoch(self, epoch, result):
        original(self, epoch, result)
        self._checkpoints.wait()
        raise KeyboardInterrupt

    return after_epoch
