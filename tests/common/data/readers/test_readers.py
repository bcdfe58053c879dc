from __future__ import annotations

import dataclasses
import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2t_common.data import (
    Preprocess,
    TrainExamples,
    Unreadable,
    check_classes,
    evaluation_image,
    head_classes,
    open_source,
    training_image,
)
from t2t_common.data.augment.pad_crop import draw_pad_crop
from t2t_common.data.augment.transforms import draw_crop
from t2t_common.data.readers import idx_cifar
from t2t_common.data.readers.idx_cifar import read_idx
from t2t_config import RECIPES, Recipe, model_config
from tests.support.small_data import CLASSES, TRAIN_IMAGES, VAL_IMAGES, idx_bytes, write_idx_folder

PLAIN = Preprocess(32, 3, (0.0,) * 3, (1.0,) * 3, 1.0, "bicubic")


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8))


# --- Sources ------------------------------------------------------------------------------------------------


def test_digits_are_split_evenly_and_for_good():
    train, val = open_source("digits", "train"), open_source("digits", "val")
    assert (len(train), len(val), train.num_classes) == (1437, 360, 10)
    labels = np.bincount([val[i][1] for i in range(360)])
    assert list(labels) == [36] * 10
    pixels = {np.asarray(source[i][0]).tobytes() for source in (train, val) for i in range(len(source))}
    assert len(pixels) == 1797  # all images differ, so none is in both parts
    image, _ = val[0]
    assert (image.mode, image.size, np.asarray(image).max()) == ("L", (8, 8), 255)


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_files(tmp_path: Path, zipped: bool):
    write_idx_folder(tmp_path)
    if zipped:
        for path in list(tmp_path.iterdir()):
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    train, val = open_source(tmp_path, "train"), open_source(tmp_path, "val")
    assert (len(train), len(val), val.num_classes) == (TRAIN_IMAGES, VAL_IMAGES, CLASSES)
    image, label = train[3]
    assert label == 3
    assert np.asarray(image)[4:, 4:].mean() > np.asarray(image)[:4, :4].mean() + 60


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1], "truncated"),
        (lambda data: gzip.compress(data)[:-20], "truncated"),
        (lambda data: b"PK" + data, "not an IDX file"),
        (lambda data: data[:6], "truncated"),
        (lambda data: idx_bytes(np.zeros((3, 8, 8))), "do not belong together"),
    ],
)
def test_damaged_idx_files_are_named(tmp_path: Path, damage, message: str):
    path = write_idx_folder(tmp_path) / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=f"{path.name}.*{message}"):
        open_source(tmp_path, "train")


@pytest.mark.parametrize("split", ["train", "val"])
def test_no_images_at_all(tmp_path: Path, split: str):
    prefix = "train" if split == "train" else "t10k"
    write_idx_folder(tmp_path)
    (tmp_path / f"{prefix}-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros((0, 8, 8))))
    (tmp_path / f"{prefix}-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(0)))
    with pytest.raises(ValueError, match=f"has no {'training' if split == 'train' else 'validation'} images"):
        open_source(tmp_path, split)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(64, 0, 0), (64, 8, 0)])
def test_images_without_pixels(tmp_path: Path, shape: tuple[int, ...]):
    write_idx_folder(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros(shape)))
    with pytest.raises(ValueError, match=f"train-images-idx3-ubyte are {shape[1]}x{shape[2]}: get another copy of it"):
        open_source(tmp_path, "train")


def test_missing_idx_file_is_named(tmp_path: Path):
    (write_idx_folder(tmp_path) / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(ValueError, match="no train-labels"):
        open_source(tmp_path, "train")


def test_idx_of_other_rank(tmp_path: Path):
    path = tmp_path / "x"
    path.write_bytes(idx_bytes(np.arange(6).reshape(1, 2, 3)))
    np.testing.assert_array_equal(read_idx(path), np.arange(6).reshape(1, 2, 3))


def write_cifar(folder: Path, *, hundred: bool) -> np.ndarray:
    """Five records per file; the images (5, 32, 32, 3) of every file."""
    folder.mkdir(parents=True, exist_ok=True)
    images = np.random.RandomState(0).randint(0, 256, (5, 32, 32, 3)).astype(np.uint8)
    labels = np.arange(5, dtype=np.uint8)[:, None] + (90 if hundred else 5)
    labels = np.concatenate([np.zeros_like(labels), labels], 1) if hundred else labels
    records = np.concatenate([labels, images.transpose(0, 3, 1, 2).reshape(5, -1)], 1)
    batches = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    for name in ["train.bin", "test.bin"] if hundred else batches:
        (folder / name).write_bytes(records.tobytes())
    return images


@pytest.mark.parametrize("hundred", [False, True])
def test_cifar(tmp_path: Path, hundred: bool):
    images = write_cifar(tmp_path / "cifar-binary", hundred=hundred)  # the folder that the archive unpacks
    train, val = open_source(tmp_path, "train"), open_source(tmp_path, "val")
    assert (len(train), len(val)) == (5 if hundred else 25, 5)
    assert val.num_classes == (100 if hundred else 10)
    image, label = val[2]
    assert label == (92 if hundred else 7)
    np.testing.assert_array_equal(np.asarray(image), images[2])


@pytest.mark.parametrize("together", [False, True])
def test_of_two_cifars_side_by_side_the_one_with_so_many_classes_is_taken(together: bool, tmp_path: Path):
    """In folders of their own, as the archives unpack them, or all files in one."""
    for hundred, name in ((False, "cifar-10-batches-bin"), (True, "cifar-100-binary")):
        write_cifar(tmp_path if together else tmp_path / name, hundred=hundred)
    for classes, images in ((10, 25), (100, 5)):
        for split in ("train", "val"):
            source = open_source(tmp_path, split, classes)
            assert source.num_classes == classes
        assert len(open_source(tmp_path, "train", classes)) == images
    for other in (None, 1000):
        with pytest.raises(ValueError, match=r"holds CIFAR-10 and CIFAR-100: set --num-classes 10 or 100, or name"):
            open_source(tmp_path, "train", other)


def test_the_head_has_the_classes_of_the_data_unless_told_otherwise(tmp_path: Path):
    write_cifar(tmp_path, hundred=False)
    source = open_source(tmp_path, "train", 100)  # there is no other
    for name in ("cifar100_t2t_vit_14", "imagenet_t2t_vit_14", "digits"):
        assert head_classes(RECIPES[name], source) == 10
    assert head_classes(dataclasses.replace(RECIPES["imagenet_t2t_vit_14"], num_classes=1000), source) == 1000


def test_damaged_cifar_is_named(tmp_path: Path):
    write_cifar(tmp_path, hundred=False)
    (tmp_path / "data_batch_3.bin").write_bytes(b"\x00" * 3000)
    with pytest.raises(ValueError, match=r"data_batch_3.bin is truncated"):
        open_source(tmp_path, "train")
    (tmp_path / "data_batch_3.bin").write_bytes(b"\x0a" * 3073)
    with pytest.raises(ValueError, match=r"data_batch_3.bin has label 10"):
        open_source(tmp_path, "train")
    (tmp_path / "data_batch_3.bin").unlink()
    with pytest.raises(ValueError, match=r"no data_batch_3.bin"):
        open_source(tmp_path, "train")


def write_tree(root: Path) -> None:
    for split, count in (("train", 3), ("val", 2)):
        for label, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (20, 10), (100 * label, 0, 0)).save(root / split / name / f"{i}.png")


def test_image_folder(tmp_path: Path):
    write_tree(tmp_path)
    train, val = open_source(tmp_path, "train"), open_source(tmp_path, "val")
    assert (len(train), len(val), train.num_classes) == (6, 4, 2)
    assert train.class_names == val.class_names == ["cat", "dog"]
    image, label = val[3]
    assert (label, image.getpixel((0, 0)), image.size) == (1, (100, 0, 0), (20, 10))
    assert len(open_source(tmp_path / "val", "val")) == 4  # class folders alone will do


def test_validation_classes_are_numbered_as_in_training(tmp_path: Path):
    write_tree(tmp_path)
    for path in (tmp_path / "val" / "cat").iterdir():
        path.unlink()
    (tmp_path / "val" / "cat").rmdir()
    assert open_source(tmp_path, "val")[0][1] == 1
    (tmp_path / "val" / "emu").mkdir()
    with pytest.raises(ValueError, match="lacks: emu"):
        open_source(tmp_path, "val")


def test_bad_folders_are_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no data folder .*nowhere"):
        open_source(tmp_path / "nowhere", "val")
    with pytest.raises(ValueError, match=f"no images in {tmp_path}"):
        open_source(tmp_path, "val")
    with pytest.raises(ValueError, match=r"no folder .*train"):
        open_source(tmp_path, "train")


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\nbroken", None])
def test_unreadable_image_is_named(tmp_path: Path, content: bytes | None):
    write_tree(tmp_path)
    path = tmp_path / "train" / "dog" / "1.png"
    noise(30, 30).save(path)
    path.write_bytes(path.read_bytes()[:-500] if content is None else content)
    source = open_source(tmp_path, "train")
    recipe = Recipe(model="t2t_vit_micro", img_size=16, batch_size=6, epochs=1, cooldown_epochs=0, max_corrupt_images=0)
    examples = TrainExamples(source, recipe, Preprocess.of_recipe(recipe))
    with pytest.raises(ValueError, match=r"unreadable image .*dog.1.png.*replace or delete it"):
        Unreadable(source, 0).account(np.stack([examples[number]["unreadable"] for number in range(6)]))


def test_too_few_classes_in_the_head():
    source = open_source("digits", "val")
    check_classes(source, 10)
    with pytest.raises(ValueError, match="--num-classes 10"):
        check_classes(source, 9)


# --- Transforms ---------------------------------------------------------------------------------------------


def test_evaluation_image_is_timms_for_imagenet():
    """500 x 400 at 224 and 0.9: shorter side to 248, longer to 310, centre 224, ImageNet figures."""
    how = Preprocess.of_recipe(RECIPES["imagenet_t2t_vit_14"])
    image = noise(400, 500)
    resized = image.resize((310, 248), Image.Resampling.BICUBIC).crop((43, 12, 267, 236))
    config = model_config("t2t_vit_14")
    expected = (np.asarray(resized) / 255.0 - config.mean) / config.std
    ours = evaluation_image(image, how)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_gray_and_colour_are_converted():
    gray = dataclasses.replace(PLAIN, in_chans=1, mean=(0.0,), std=(1.0,))
    assert evaluation_image(noise(32, 32), gray).shape == (32, 32, 1)
    colour = evaluation_image(noise(32, 32).convert("L"), PLAIN)
    np.testing.assert_array_equal(colour[..., 0], colour[..., 2])


def test_crops_follow_scale_and_ratio():
    """Position-coded images tell which part of the original a crop shows."""
    side = 200
    ramp = np.linspace(0, 255, side)
    coded = np.zeros((side, side, 3))
    coded[..., 0], coded[..., 1] = ramp[None, :], ramp[:, None]
    image = Image.fromarray(coded.astype(np.uint8))
    recipe = dataclasses.replace(RECIPES["imagenet_t2t_vit_14"], auto_augment=None, scale=(0.2, 0.5), hflip=0.5)
    areas, ratios, flips = [], [], 0
    for seed in range(300):
        out = training_image(image, PLAIN, recipe, np.random.default_rng(seed))
        width, height = (abs(out[..., c].mean(c)[-1] - out[..., c].mean(c)[0]) for c in (0, 1))
        flips += out[0, 0, 0] > out[0, -1, 0]
        areas.append(width * height)
        ratios.append(width / height)
    assert 0.15 < min(areas) < 0.22
    assert 0.42 < max(areas) < 0.55
    assert 0.6 < min(ratios) < 0.8
    assert 1.25 < max(ratios) < 1.5
    assert 110 < flips < 190


def test_a_crop_that_cannot_fit_is_central():
    """A 4:1 image has no crop of nearly all its area and ratio below 4/3."""
    image = Image.fromarray(np.tile(np.arange(200, dtype=np.uint8)[None, :, None], (50, 1, 3)))
    recipe = dataclasses.replace(RECIPES["imagenet_t2t_vit_14"], auto_augment=None, scale=(0.99, 1.0), hflip=0.0)
    out = 255 * training_image(image, PLAIN, recipe, np.random.default_rng(0))
    assert out[..., 0].mean() == pytest.approx(99.5, abs=1)
    assert out[0, -1, 0] - out[0, 0, 0] == pytest.approx(50 * 4 / 3, abs=5)


@pytest.mark.parametrize("size", [(64, 64), (96, 64)])
def test_pad_crop_cuts_from_the_resized_image_in_its_border(size: tuple[int, int]):
    """Written out with numpy: bilinear to 32, 4 black pixels around, a window of 32, perhaps mirrored."""
    recipe = dataclasses.replace(RECIPES["cifar10_t2t_vit_14"], img_size=32)
    how, image = Preprocess.of_recipe(recipe), noise(size[1], size[0])
    resized = np.asarray(image.resize((32 * size[0] // 64, 32), Image.Resampling.BILINEAR))
    bordered = np.pad(resized, ((4, 4), (4, 4), (0, 0)))
    seen = set()
    for seed in range(400):
        rng = np.random.default_rng(seed)
        draws = draw_pad_crop(image.size, how, recipe, rng)
        window = bordered[draws.top + 4 : draws.top + 36, draws.left + 4 : draws.left + 36]
        expected = (window[:, ::-1] if draws.flip else window) / 255.0
        expected = (expected - how.mean) / how.std
        ours = training_image(image, how, recipe, np.random.default_rng(seed))
        np.testing.assert_allclose(ours, expected, atol=2e-6)
        seen.add(draws)
    lefts = {draws.left for draws in seen}
    assert (min(lefts), max(lefts)) == (-4, resized.shape[1] - 28)
    assert {draws.top for draws in seen} == set(range(-4, 5))
    assert 150 < sum(draw_pad_crop(image.size, how, recipe, np.random.default_rng(s)).flip for s in range(400)) < 250


def test_a_fixed_interpolation_holds_for_crop_and_randaugment():
    recipe = dataclasses.replace(RECIPES["imagenet_t2t_vit_14"], auto_augment="rand-m9-n4")
    kinds = {}
    for name in ("random", "bilinear", "bicubic"):
        fixed = dataclasses.replace(recipe, train_interpolation=name)
        draws = [draw_crop((64, 64), fixed, np.random.default_rng(seed)) for seed in range(30)]
        kinds[name] = {(d.resample, *(layer.resample for layer in d.layers)) for d in draws}
    assert set(sum(kinds["bicubic"], ())) == {Image.Resampling.BICUBIC}
    assert set(sum(kinds["bilinear"], ())) == {Image.Resampling.BILINEAR}
    assert len(kinds["random"]) > 10


def spot(x: int, y: int) -> Image.Image:
    pixels = np.zeros((64, 64), np.uint8)
    pixels[y - 2 : y + 3, x - 2 : x + 3] = 255
    return Image.fromarray(pixels)


def centre_of_mass(image_HxWx1: np.ndarray) -> np.ndarray:
    weights = image_HxWx1[..., 0]
    ys, xs = np.mgrid[: weights.shape[0], : weights.shape[1]]
    return np.array([(weights * xs).sum(), (weights * ys).sum()]) / weights.sum()


@pytest.mark.parametrize(
    ("field", "value", "farthest"),
    [("max_shift", 0.1, 6.4 * 2**0.5), ("max_zoom", 0.1, 16 * 0.1), ("max_turn", 10.0, 16 * np.radians(10))],
)
def test_affine_moves_no_farther_than_asked(field: str, value: float, farthest: float):
    """A spot 16 pixels right of the centre."""
    still = {"max_shift": 0.0, "max_zoom": 0.0, "max_turn": 0.0}
    recipe = dataclasses.replace(RECIPES["digits"], **{**still, field: value})
    how = dataclasses.replace(PLAIN, img_size=64, in_chans=1, mean=(0.0,), std=(1.0,))
    moved = [
        np.linalg.norm(
            centre_of_mass(training_image(spot(48, 32), how, recipe, np.random.default_rng(seed)))
            - centre_of_mass(evaluation_image(spot(48, 32), how))
        )
        for seed in range(60)
    ]
    assert max(moved) < farthest + 0.3
    assert max(moved) > 0.7 * farthest
    assert min(moved) < 0.4 * farthest


def test_preprocess_falls_back_to_the_model():
    how = Preprocess.of_model(model_config("vit_base_patch16_384"), {})
    assert (how.img_size, how.crop_pct, how.mean) == (384, 1.0, (0.5, 0.5, 0.5))
    gray = Preprocess.of_model(model_config("t2t_vit_14"), {"in_chans": 1, "crop_pct": 1.0, "std": [0.3]})
    assert gray.mean == (pytest.approx(0.449, abs=1e-3),)
    assert (gray.std, gray.crop_pct) == ((0.3,), 1.0)


def test_an_idx_file_that_unpacks_to_far_more_than_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(idx_cifar, "ALWAYS", 1 << 20)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(idx_bytes(np.zeros((10, 1000, 1000)))))
    with pytest.raises(ValueError, match=r"idx3-ubyte.gz unpacks to more than 1,0"):
        read_idx(path)
    monkeypatch.setattr(idx_cifar, "ALWAYS", 1 << 24)
    assert read_idx(path).shape == (10, 1000, 1000)


def test_an_idx_file_of_too_many_axes(tmp_path: Path):
    (tmp_path / "x-idx3-ubyte").write_bytes(b"\0\0\x08\x46" + b"\0\0\0\1" * 70 + b"x")
    with pytest.raises(ValueError, match="x-idx3-ubyte is damaged: it would have 70 axes"):
        read_idx(tmp_path / "x-idx3-ubyte")
