"""RandAugment and the whole crop transform against timm's pixels for timm's draws (tests/data/augment)."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn
from PIL import Image

from t2t_common.data import training_image
from t2t_common.data.augment.randaugment import (
    INCREASING,
    OPERATIONS,
    PLAIN,
    RANDOM_INTERPOLATION,
    Layer,
    apply_layers,
    draw_layers,
    fill_colour,
)
from t2t_common.data.augment.transforms import CropDraws, cropped
from t2t_common.data.images import open_image
from t2t_common.data.preprocess import Preprocess
from t2t_config import RECIPES
from t2t_config.randaugment import RandAugmentConfig

PHOTOGRAPHS = Path(sklearn.__file__).parent / "datasets" / "images"
GOLDENS = json.loads((Path(__file__).parents[3] / "data" / "augment" / "goldens.json").read_text())
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RECIPE = RECIPES["imagenet_t2t_vit_14"]


def digest(*images: Image.Image) -> str:
    return hashlib.sha256(b"".join(np.asarray(image).tobytes() for image in images)).hexdigest()


@functools.cache
def photograph(name: str, box: tuple[int, int, int, int] = (180, 90, 270, 160)) -> Image.Image:
    return open_image(PHOTOGRAPHS / name).crop(box)


# --- Configuration ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("golden", GOLDENS["configs"], ids=lambda golden: golden["text"])
def test_strings_mean_what_they_mean_to_timm(golden: dict[str, Any]):
    config = RandAugmentConfig.parse(golden["text"])
    names = ("magnitude", "num_layers", "prob", "magnitude_max")
    assert {name: getattr(config, name) for name in names} == {name: golden[name] for name in names}
    assert config.magnitude_std == float(golden["magnitude_std"])
    assert sorted(INCREASING if config.increasing else PLAIN) == golden["operations"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("augmix-m3", "begin with 'rand'"),
        ("rand-x9", "'x9' of 'rand-x9' is unknown: choose from m, n, p, mstd, mmax, inc"),
        ("rand-tweights", "'tweights' .* is unknown"),
        ("rand-m", "'m' of 'rand-m' is unknown"),
        ("rand-m9-", "'' of 'rand-m9-' is unknown"),
        ("rand-m9-m8", "'m8' .* comes twice"),
        ("rand-m9.5", "'m9.5' .* whole number"),
        ("rand-p1.5", r"probability .* \[0, 1\]"),
    ],
)
def test_what_is_not_understood_is_refused(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        RandAugmentConfig.parse(text)


# --- Pixels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_operations_are_timms(name: str):
    """Weak, strong and out of range; both directions, both interpolations."""
    goldens = [golden for golden in GOLDENS["operations"] if golden["name"] == name]
    assert len(goldens) == 18
    for golden in goldens:
        image = photograph(golden["image"])
        results = [
            apply_layers(
                image,
                [Layer(name, golden["magnitude"], negate, resample)],
                limit=golden["limit"],
                fill=fill_colour(MEAN),
            )
            for negate, resample in itertools.product((False, True), RANDOM_INTERPOLATION)
        ]
        assert digest(*results) == golden["sha256"], golden


def test_every_golden_operation_is_ours():
    assert {golden["name"] for golden in GOLDENS["operations"]} == set(OPERATIONS)


def test_whole_transforms_are_timms():
    """Crop, interpolation, flip and RandAugment in timm's order, for the draws that timm made."""
    how = Preprocess((48, 64), 3, MEAN, STD, 1.0, "bicubic")
    seen = set()
    for golden in GOLDENS["sequences"]:
        layers = [Layer(**{**layer, "resample": Image.Resampling(layer["resample"])}) for layer in golden["layers"]]
        draws = CropDraws(tuple(golden["box"]), Image.Resampling(golden["resample"]), golden["flip"], layers)
        recipe = dataclasses.replace(RECIPE, auto_augment=golden["auto_augment"])
        image = cropped(open_image(PHOTOGRAPHS / golden["image"]), how, recipe, draws)
        assert digest(image) == golden["sha256"], golden
        seen |= {(golden["flip"], golden["resample"], len(layers))}
    assert {count for _, _, count in seen} == {0, 1, 2, 3}
    assert len(seen) >= 8


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_gray_images_stay_gray(name: str):
    image = photograph("china.jpg").convert("L")
    changed = apply_layers(image, [Layer(name, 7.0)], fill=fill_colour((0.5,)))
    assert (changed.mode, changed.size) == ("L", image.size)


# --- Draws --------------------------------------------------------------------------------------------------


def test_draws_follow_timms_law():
    """4,000 images: operations evenly, coin 0.5, strengths N(9, 0.5), signs and interpolations evenly."""
    rng = np.random.default_rng(0)
    config = RandAugmentConfig.parse("rand-m9-mstd0.5-inc1")
    drawn = [draw_layers(config, rng) for _ in range(4000)]
    counts = np.bincount([len(layers) for layers in drawn], minlength=3)
    np.testing.assert_allclose(counts / 4000, [0.25, 0.5, 0.25], atol=0.03)
    layers = [layer for image in drawn for layer in image]
    shares = [sum(layer.name == name for layer in layers) / len(layers) for name in INCREASING]
    np.testing.assert_allclose(shares, 1 / 15, atol=0.02)
    assert {layer.name for layer in layers} == set(INCREASING)
    strengths = np.array([layer.magnitude for layer in layers])
    assert strengths.mean() == pytest.approx(9, abs=0.03)
    assert strengths.std() == pytest.approx(0.5, abs=0.03)
    assert np.mean([layer.negate for layer in layers]) == pytest.approx(0.5, abs=0.03)
    assert np.mean([layer.resample == RANDOM_INTERPOLATION[0] for layer in layers]) == pytest.approx(0.5, abs=0.03)
    assert any(len(image) == 2 and image[0].name == image[1].name for image in drawn)  # with replacement


def test_strengths_are_fixed_or_even_when_asked():
    rng = np.random.default_rng(0)
    fixed = [draw_layers(RandAugmentConfig.parse("rand-m7-p1-n3"), rng) for _ in range(20)]
    assert {layer.magnitude for layers in fixed for layer in layers} == {7}
    assert {len(layers) for layers in fixed} == {3}
    assert {layer.name for layers in fixed for layer in layers} <= set(PLAIN)
    even = RandAugmentConfig.parse("rand-m8-mstd101-p1")
    strengths = [layer.magnitude for _ in range(1000) for layer in draw_layers(even, rng)]
    assert 0 <= min(strengths) < 0.1
    assert 7.9 < max(strengths) < 8
    assert np.mean(strengths) == pytest.approx(4, abs=0.2)


def test_training_images_use_it_and_depend_on_the_generator_alone():
    image = open_image(PHOTOGRAPHS / "china.jpg")
    how = Preprocess(32, 3, MEAN, STD, 1.0, "bicubic")

    def make(seed: int, auto_augment: str | None) -> np.ndarray:
        recipe = dataclasses.replace(RECIPE, auto_augment=auto_augment)
        return training_image(image, how, recipe, np.random.default_rng(seed))

    official = "rand-m9-mstd0.5-inc1"
    plain, changed = (np.stack([make(seed, text) for seed in range(16)]) for text in (None, official))
    np.testing.assert_array_equal(changed, [make(seed, official) for seed in range(16)])
    same = np.array([np.array_equal(a, b) for a, b in zip(plain, changed, strict=True)])
    assert 0 < same.sum() < 12  # a quarter of the images is only cropped and flipped, as without
    assert changed.shape == (16, 32, 32, 3)
