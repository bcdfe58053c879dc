"""Label maps: read, refused, and moved with their images."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from t2t_common.data import Preprocess, TrainExamples, open_source, with_token_labels
from t2t_common.data.augment.randaugment import Layer
from t2t_common.data.examples import UNREADABLE
from t2t_common.data.images import UnreadableImageError
from t2t_common.data.token_labels import LabelMap, TokenLabelSource, labelled_example, moved
from t2t_config import Recipe
from t2t_torch.training.token_labeling import token_targets
from tests.support.token_labels import LABELLED, token_goldens, write_labelled_folder

MOVES = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    data, labels = write_labelled_folder(tmp_path)
    return dataclasses.replace(LABELLED, data=str(data), token_labels=str(labels))


def source_of(recipe: Recipe) -> TokenLabelSource:
    assert recipe.data is not None
    found = with_token_labels(open_source(recipe.data, "train"), recipe)
    assert isinstance(found, TokenLabelSource)
    return found


def how_of(recipe: Recipe) -> Preprocess:
    return Preprocess.of_recipe(recipe)


# ---- the same place in image and map ----


def half_and_half(side: int) -> tuple[Image.Image, LabelMap]:
    """Four quarters of an image in four grays, and a map that names them 0 ... 3."""
    quarters = np.arange(4).reshape(2, 2).repeat(side // 2, axis=0).repeat(side // 2, axis=1)
    classes = np.arange(4).reshape(2, 2).repeat(8, axis=0).repeat(8, axis=1)[None].astype(np.int32)
    return Image.fromarray((quarters * 80).astype(np.uint8)), LabelMap(np.full((1, 16, 16), 9, np.float32), classes)


def test_tokens_are_labelled_as_the_pixels_that_they_show():
    """Of crops and flips: a token's target names the quarter that most of its pixels are of."""
    plain = {"scale": (0.1, 0.5), "auto_augment": None, "mean": (0.0,), "std": (1.0,)}
    recipe = dataclasses.replace(LABELLED, **plain)
    how, (image, label_map) = how_of(recipe), half_and_half(256)
    agreement, seen = [], set()
    for seed in range(40):
        example = labelled_example(image, label_map, how, recipe, np.random.default_rng(seed))
        arrays = (torch.from_numpy(example[name])[None] for name in ("label_scores", "label_classes", "crop"))
        targets = token_targets(*arrays, num_classes=4, grid=(4, 4))[0, 1:].argmax(dim=-1).view(4, 4).numpy()
        pixels = example["image"].reshape(4, 16, 4, 16).mean(axis=(1, 3)) * 255 / 80
        clear = np.abs(pixels - pixels.round()) < 0.05
        agreement.append((targets == pixels.round())[clear])
        seen |= set(targets.ravel().tolist())
    assert seen == {0, 1, 2, 3}
    assert np.concatenate(agreement).mean() > 0.97


def test_the_draws_are_those_of_an_image_without_a_map(recipe: Recipe):
    plain = dataclasses.replace(recipe, auto_augment=None, hflip=0.0)  # flipped first, crops lie on the other side
    how, images, labelled = how_of(recipe), open_source(recipe.data or "", "train"), source_of(plain)
    for number in range(8):
        a, b = (TrainExamples(source, plain, how)[number] for source in (images, labelled))
        for name in ("label", "image"):
            np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("name", MOVES)
def test_maps_are_moved_as_the_authors_do(name: str):
    plain = token_goldens()["plain"].astype(np.float32)
    label_map = LabelMap(plain[0], plain[1].astype(np.int32))
    goldens = token_goldens(f"augmented/{name}/")
    assert len(goldens) == 4
    for level, expected in goldens.items():
        layer = Layer(name, 10 * abs(float(level)), negate=float(level) < 0)
        found = moved(label_map, layer)
        np.testing.assert_array_equal(found.scores, expected[0], err_msg=level)
        np.testing.assert_array_equal(found.classes, expected[1], err_msg=level)
    assert moved(label_map, Layer("Invert", 9.0)) is label_map


# ---- examples ----


def test_examples_carry_maps_and_crops_and_are_decided_by_the_seed(recipe: Recipe):
    examples = TrainExamples(source_of(recipe), recipe, how_of(recipe))
    shapes = {name: (array.shape, array.dtype) for name, array in examples[3].items()}
    assert shapes["label_scores"] == ((2, 6, 6), np.float32)
    assert shapes["label_classes"] == ((2, 6, 6), np.int32)
    assert shapes["crop"] == ((4,), np.float32)
    again = TrainExamples(source_of(recipe), recipe, how_of(recipe))
    for name, array in examples[3].items():
        np.testing.assert_array_equal(array, again[3][name])
    assert any((examples[3][name] != examples[4][name]).any() for name in ("crop", "label_scores"))


def test_a_damaged_map_is_replaced_with_its_image(recipe: Recipe):
    paths = sorted(Path(recipe.token_labels or "").rglob("*.pt"))
    for path in paths[1:]:
        path.write_bytes(b"nothing")
    source = source_of(recipe)
    with pytest.raises(UnreadableImageError, match=f"unreadable label map {paths[1]} .*make it anew"):
        source[1]
    torch.save(torch.full((2, 2, 6, 6), torch.nan), paths[1])
    with pytest.raises(UnreadableImageError, match="not all of it is finite"):
        source[1]
    for path in paths[3:]:
        torch.save(torch.ones(2, 2, 6, 6), path)
    examples = TrainExamples(source, recipe, how_of(recipe))
    found = [examples[number][UNREADABLE] for number in range(examples.rows * 4)]
    assert {1, 2} == set(np.concatenate(found).tolist()) - {-1}


# ---- refused ----


def test_maps_that_do_not_fit_are_refused(recipe: Recipe, tmp_path: Path):
    paths = sorted(Path(recipe.token_labels or "").rglob("*.pt"))
    source = source_of(recipe)
    torch.save(torch.ones(2, 2, 5, 6), paths[1])
    with pytest.raises(ValueError, match=r"is \(2, 2, 5, 6\), the first one \(2, 2, 6, 6\)"):
        source[1]
    torch.save(torch.full((2, 2, 6, 6), 4.0), paths[1])
    with pytest.raises(ValueError, match="names class 4, the model has 4"):
        source[1]
    torch.save(torch.ones(3, 2, 6), paths[1])
    with pytest.raises(ValueError, match=r"expected \(2, K, H, W\)"):
        source[1]
    paths[1].unlink()
    with pytest.raises(ValueError, match=f"no label map {paths[1]} for .*train.*: make it, or check --token-labels"):
        source[1]


def test_recipes_without_maps_and_data_without_a_tree_are_refused(recipe: Recipe, tmp_path: Path):
    images = open_source(recipe.data or "", "train")
    with pytest.raises(ValueError, match="add --token-labels DIR"):
        with_token_labels(images, dataclasses.replace(recipe, token_labels=None))
    with pytest.raises(FileNotFoundError, match=r"no folder of label maps .*none: check --token-labels"):
        with_token_labels(images, dataclasses.replace(recipe, token_labels=str(tmp_path / "none")))
    with pytest.raises(ValueError, match=r"need --data with train/CLASS/\*.jpg"):
        with_token_labels(open_source("digits", "train"), recipe)
    plain = dataclasses.replace(recipe, aux_head=False, token_labels=None, mix_token=0.0)
    assert with_token_labels(images, plain) is images
