"""python -m t2t_jax.data: what it writes, what it measures, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2t_common.data import open_source
from t2t_common.io import cli
from t2t_config import Recipe
from t2t_jax.data.__main__ import main
from t2t_jax.data.bench import Bench, Rate, bench
from tests.support.token_labels import write_labelled_folder

SETTINGS = ("--bench", "--seconds", "0.05", "--threads", "0", "--batch-size", "4")


def test_what_is_written_can_be_opened(
    idx_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("T2T_CACHE", str(tmp_path / "cache"))
    for kind in ("tar", "arrayrecord"):
        args = [str(idx_folder), "--write", str(tmp_path / kind), "--format", kind, "--images-per-shard", "30"]
        assert cli.run(main, args) == cli.OK
        assert capsys.readouterr().out == f"84 images in {tmp_path / kind}\n"
        for split in ("train", "val"):
            ours, theirs = open_source(tmp_path / kind, split), open_source(idx_folder, split)
            assert (len(ours), ours.num_classes) == (len(theirs), theirs.num_classes)
            np.testing.assert_array_equal(np.asarray(ours[7][0]), np.asarray(theirs[7][0]))


def test_one_folder_of_class_folders_is_written_in_two_splits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("T2T_CACHE", str(tmp_path / "cache"))
    for number in range(40):
        path = tmp_path / "photographs" / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), number).save(path)
    args = [str(tmp_path / "photographs"), "--write", str(tmp_path / "shards"), "--val-fraction", "0.3"]
    assert cli.run(main, args) == cli.OK
    assert "40 images in" in capsys.readouterr().out
    for split in ("train", "val"):
        ours = open_source(tmp_path / "shards", split)
        theirs = open_source(tmp_path / "photographs", split, val_fraction=0.3)
        assert [ours.read(index) for index in range(len(ours))] == [theirs.read(index) for index in range(len(theirs))]
        assert ours.class_names == ["cat", "dog"]


def test_it_measures_a_recipe_and_writes_the_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "bench.json"
    assert cli.run(main, ["digits", *SETTINGS, "--step-ms", "1e6", "--json", str(path)]) == cli.OK
    facts = json.loads(path.read_text())
    assert facts["feeds"] is True
    assert facts["needed"] == pytest.approx(0.004)
    assert [(rate["threads"], rate["workers"]) for rate in facts["rates"]] == [(0, 0)]
    assert 10 < facts["rates"][0]["images_per_second"] < 1e5
    assert min(facts[f"{part}_ms"] for part in ("decode", "augment", "batch")) > 0
    out = capsys.readouterr().out
    assert "1,437 training images" in out
    assert "feeds the device" in out


def test_an_input_that_is_too_slow_fails(capsys: pytest.CaptureFixture[str]):
    assert cli.run(main, ["digits", *SETTINGS, "--step-ms", "0.001"]) == cli.FAILED
    assert "cannot feed the device" in capsys.readouterr().out


def test_the_verdict_follows_from_the_figures():
    def verdict(needed: float | None) -> Bench:
        rates = (Rate(1, 0, 90.0), Rate(2, 0, 170.0))
        return Bench(1000, 64, 4.0, 5.0, 1.0, rates, cores=2, needed=needed)

    assert (verdict(None).feeds, verdict(None).cores_needed) == (None, None)
    assert verdict(170.0).feeds is True
    assert verdict(171.0).feeds is False
    assert verdict(1000.0).cores_needed == pytest.approx(10.0)  # 10 ms an image
    assert "40 %" in str(verdict(None))  # decoding
    assert "about 10.0 such cores" in str(verdict(1000.0))


def test_time_goes_where_it_is_spent():
    """Decoding a large image to a small one is most of the work."""

    class Large:
        num_classes, class_names = 2, None

        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            return Image.effect_noise((900, 900), 50).resize((8, 8)), 0

    recipe = Recipe(model="t2t_vit_micro", img_size=8, in_chans=1, batch_size=4, augment="none")
    result = bench(Large(), recipe, settings=[(0, 0)], seconds=0.05, step_ms=10.0, processes=2)
    assert result.decode_ms > 5 * (result.augment_ms + result.batch_ms)
    assert result.needed == pytest.approx(200.0)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["digits"], "nothing to do: add --bench, or --write FOLDER"),
        (["digits", "--bench", "--write", "x"], "nothing to do"),
        (["nowhere", "--bench"], "'nowhere' is neither a folder nor a recipe"),
        (["imagenet_t2t_vit_14", "--bench"], "needs data: add --data DIR"),
        (["digits", "--bench", "--seconds", "0"], "seconds must be above 0"),
        (["digits", "--bench", "--threads", "-1"], "threads and workers must be numbers from 0"),
        (["nowhere", "--write", "x"], "no data folder nowhere"),
        (["digits", "--write", "x", "--val-fraction", "0.3"], "digits is not one: leave it out"),
        (["digits", "--write", "x", "--val-fraction", "1"], "a fraction above 0 and below 1"),
        (["digits", "--write", "/nowhere/x"], "create the folder /nowhere first"),
        (["digits", "--write", "x", "--format", "zip"], "zip"),
    ],
)
def test_calls_that_make_no_sense_say_why(args: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert cli.run(main, args) == cli.MISUSED
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_label_maps_are_part_of_the_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data, labels = write_labelled_folder(tmp_path)
    args = ["imagenet_t2t_vit_24_token_labeling", "--data", str(data), *SETTINGS[:-1], "16"]
    assert cli.run(main, args) == cli.MISUSED
    assert "add --token-labels DIR" in capsys.readouterr().err
    assert cli.run(main, [*args, "--token-labels", str(labels)]) == cli.OK
    assert "16 training images" in capsys.readouterr().out
