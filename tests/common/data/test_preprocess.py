"""Pixel equality with timm's evaluation transform on photographs; goldens of tests/data/preprocess."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn
from PIL import Image

from t2t_common.data.images import open_image
from t2t_common.data.preprocess import Preprocess, evaluation_image
from t2t_config import model_config

PHOTOGRAPHS = Path(sklearn.__file__).parent / "datasets" / "images"
GOLDENS = json.loads((Path(__file__).parents[2] / "data/preprocess/goldens.json").read_text())["goldens"]
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def preprocess(**known: Any) -> Preprocess:
    return Preprocess.of_model(model_config("t2t_vit_14"), known)


@pytest.mark.parametrize("golden", GOLDENS, ids=lambda g: f"{g['image']}-{g['box']}-{g['img_size']}-{g['crop_pct']}")
def test_pixels_are_timms(golden: dict[str, Any]):
    image = open_image(PHOTOGRAPHS / golden["image"])
    if golden["box"] is not None:
        image = image.crop(golden["box"])
    known = {name: golden[name] for name in ("img_size", "crop_pct", "interpolation")}
    pixels = evaluation_image(image, preprocess(**known, **PLAIN)) * 255
    whole = np.round(pixels).astype(np.uint8)
    assert np.abs(pixels - whole).max() < 1e-4
    assert [whole[row, column].tolist() for row, column, _ in golden["pixels"]] == [p for _, _, p in golden["pixels"]]
    assert hashlib.sha256(whole.tobytes()).hexdigest() == golden["uint8"]
    normalised = evaluation_image(image, preprocess(**known))
    assert normalised.dtype == np.float32
    assert hashlib.sha256(np.ascontiguousarray(normalised).tobytes()).hexdigest() == golden["float32"]


def test_the_goldens_are_of_many_shapes():
    assert {(g["image"], str(g["box"])) for g in GOLDENS} == {
        (name, box)
        for name in ("china.jpg", "flower.jpg")
        for box in ("None", "[180, 0, 420, 427]", "[40, 30, 141, 120]", "[0, 200, 640, 233]")
    }
    assert len({g["float32"] for g in GOLDENS}) == len(GOLDENS) == 72


def test_transparent_and_gray_images_become_rgb():
    gray = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    how = preprocess(img_size=8, crop_pct=1.0, **PLAIN)
    expected = evaluation_image(gray.convert("RGB"), how)
    for mode in ("L", "LA", "P", "RGBA"):
        np.testing.assert_array_equal(evaluation_image(gray.convert(mode), how), expected)


def test_sizes_are_written_one_way():
    assert preprocess(img_size=[224, 224]).img_size == 224
    assert preprocess(img_size=[288, 160]).img_size == (288, 160)
    assert preprocess(img_size=[288, 160]).size == (288, 160)
    assert preprocess().size == (224, 224)


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({"crop_pct": 1.5}, r"crop_pct 1.5 is not a share"),
        ({"crop_pct": 0.0}, r"crop_pct 0.0 is not a share"),
        ({"interpolation": "nearest"}, r"'nearest' is not one of bilinear, bicubic"),
        ({"in_chans": 4, "mean": [0] * 4, "std": [1] * 4}, r"1 or 3 channels, the model takes 4"),
        ({"std": [0.2, 0.0, 0.2]}, r"std \(0.2, 0.0, 0.2\) is not positive: pixels are divided by it"),
        ({"std": [0.2, -0.1, 0.2]}, r"is not positive"),
        ({"std": [0.2, 1e-45, 0.2]}, r"is not positive"),
        ({"std": [0.2, float("nan"), 0.2]}, r"std .* is not positive"),
        ({"mean": [0.2, float("inf"), 0.2]}, r"mean .* is not finite"),
        ({"mean": [0.5]}, r"one figure for each of 3 channels"),
    ],
)
def test_figures_that_make_no_sense(known: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        preprocess(**known)
