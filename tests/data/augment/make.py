"""Golden values of timm's training augmentation, with the draws it made; needs timm and torchvision.

python tests/data/augment/make.py   # writes goldens.json and mixing.npz beside this file
"""

from __future__ import annotations

import hashlib
import itertools
import json
import platform
import random
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import sklearn
import timm.data
import torch
from PIL import Image, ImageOps
from timm.data import auto_augment, mixup, random_erasing, transforms

PHOTOGRAPHS = Path(sklearn.__file__).parent / "datasets" / "images"
NAMES = ("china.jpg", "flower.jpg")
BOX = (180, 90, 270, 160)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_POSTERIZE = ImageOps.posterize
STRENGTHS = [(m, None) for m in (-1.0, 0.0, 2.5, 5.0, 9.0, 9.7, 14.0)] + [(14.0, 30), (25.0, 30)]
CONFIGS = (
    "rand-m9-mstd0.5-inc1",
    "rand-m9-mstd0.5",
    "rand",
    "rand-m7-n3-mstd101",
    "rand-n1-p0.8-m20-mmax30-mstd1-inc1",
    "rand-inc0-m5-mstd100",
)


class Recorder:
    """Python's `random`, keeping what it drew as (function, result)."""

    def __init__(self) -> None:
        self.drawn: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        def draw(*args: Any) -> Any:
            value = getattr(random, name)(*args)
            self.drawn.append((name, value))
            return value

        return draw


def photograph(name: str) -> Image.Image:
    with Image.open(PHOTOGRAPHS / name) as image:
        return image.convert("RGB")


def posterize(image: Image.Image, bits: int) -> Image.Image:
    """`ImageOps.posterize` as it was: black for 0 bits, which Pillow refuses by now, so that timm stops there."""
    return _POSTERIZE(image, bits) if bits >= 1 else Image.new(image.mode, image.size)


def digest(*images: Image.Image) -> str:
    return hashlib.sha256(b"".join(np.asarray(image).tobytes() for image in images)).hexdigest()


# --- RandAugment --------------------------------------------------------------------------------------------


def config(text: str) -> dict[str, Any]:
    made = auto_augment.rand_augment_transform(text, {"img_mean": (1, 2, 3)})
    op = made.ops[0]
    return {
        "text": text,
        "magnitude": op.magnitude,
        "num_layers": made.num_layers,
        "prob": op.prob,
        "magnitude_std": str(op.magnitude_std),
        "magnitude_max": op.magnitude_max,
        "operations": sorted(op.name for op in made.ops),
    }


def operations() -> Iterator[dict[str, Any]]:
    fill = tuple(round(255 * figure) for figure in MEAN)
    names = sorted({*auto_augment._RAND_TRANSFORMS, *auto_augment._RAND_INCREASING_TRANSFORMS})
    for photo, name, (magnitude, limit) in itertools.product(NAMES, names, STRENGTHS):
        image = photograph(photo).crop(BOX)
        results = []
        for negate, resample in itertools.product((False, True), auto_augment._RANDOM_INTERPOLATION):
            hparams = {"img_mean": fill, "interpolation": resample, "magnitude_max": limit}
            with mock.patch.object(auto_augment, "_randomly_negate", lambda v, negate=negate: -v if negate else v):
                results.append(auto_augment.AugmentOp(name, 1.0, magnitude, hparams)(image))
        yield {"image": photo, "name": name, "magnitude": magnitude, "limit": limit or 10, "sha256": digest(*results)}


def sequences() -> Iterator[dict[str, Any]]:
    for photo, text, seed in itertools.product(NAMES, CONFIGS, range(8)):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        flip = bool(torch.rand(1) < 0.5)
        torch.manual_seed(seed)
        layers: list[dict[str, Any]] = []
        crop, layer = Recorder(), Recorder()
        call = auto_augment.AugmentOp.__call__

        def recorded(op: Any, image: Image.Image, layer: Any = layer, layers: Any = layers, call: Any = call) -> Any:
            layer.drawn.clear()
            image = call(op, image)
            coin, *drawn = layer.drawn
            if coin[1] <= op.prob:
                by_kind = dict(drawn)
                magnitude = by_kind.get("gauss", by_kind.get("uniform", op.magnitude))
                negate, resample = by_kind.get("random", 0.0) > 0.5, int(by_kind.get("choice", 3))
                layers.append({"name": op.name, "magnitude": magnitude, "negate": negate, "resample": resample})
            return image

        image = photograph(photo)
        pipeline = timm.data.create_transform(
            (3, 48, 64),
            is_training=True,
            auto_augment=text,
            interpolation="random",
            mean=MEAN,
            std=STD,
            normalize=False,
        )
        with (
            mock.patch.object(transforms, "random", crop),
            mock.patch.object(auto_augment, "random", layer),
            mock.patch.object(auto_augment.AugmentOp, "__call__", recorded),
        ):
            pixels = pipeline(image).numpy().transpose(1, 2, 0)
        (_, area), (_, aspect), (_, top), (_, left), (_, resample) = crop.drawn[-5:]
        area *= image.width * image.height
        aspect = float(np.exp(aspect))
        width, height = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        yield {
            "image": photo,
            "auto_augment": text,
            "box": [left, top, left + width, top + height],
            "resample": int(Image.Resampling[resample.name]),
            "flip": flip,
            "layers": layers,
            "sha256": hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest(),
        }


# --- Mixup, cutmix, random erasing --------------------------------------------------------------------------


def inputs(shape: tuple[int, ...]) -> torch.Tensor:
    """NCHW images from the NHWC ones that tests make."""
    values = np.random.RandomState(0).standard_normal(shape).astype(np.float32)
    return torch.from_numpy(values.transpose(0, 3, 1, 2).copy())


def nhwc(images: torch.Tensor) -> np.ndarray:
    return images.numpy().transpose(0, 2, 3, 1)


class RecordingNumpy:
    """NumPy whose `random.randint` keeps what it drew."""

    def __init__(self) -> None:
        self.drawn: list[int] = []
        self.random = self

    def randint(self, *args: Any, **kwargs: Any) -> Any:
        self.drawn.append(int(np.random.randint(*args, **kwargs)))
        return self.drawn[-1]

    def __getattr__(self, name: str) -> Any:
        return getattr(np.random, name, None) or getattr(np, name)


def mixed(mode: str, alphas: tuple[float, float], seed: int) -> dict[str, np.ndarray]:
    np.random.seed(seed)
    made = timm.data.Mixup(*alphas, prob=0.8, mode=mode, label_smoothing=0.1, num_classes=5)
    images, labels = inputs((6, 7, 6, 3)), torch.arange(6) % 5
    params: list[tuple[np.ndarray, np.ndarray]] = []
    name = "_params_per_batch" if mode == "batch" else "_params_per_elem"
    draw = getattr(made, name)

    def recorded(*args: Any) -> Any:
        lam, use_cutmix = draw(*args)
        params.append((np.atleast_1d(np.float32(lam)).copy(), np.atleast_1d(use_cutmix).copy()))
        return lam, use_cutmix

    numpy = RecordingNumpy()
    with mock.patch.object(made, name, recorded), mock.patch.object(mixup, "np", numpy):
        images, targets = made(images, labels)
    ((lam, use_cutmix),) = params
    centre = np.zeros((len(lam), 2), np.int32)
    centre[use_cutmix & (lam != 1)] = np.reshape(numpy.drawn, (-1, 2))
    draws = {"lam": lam, "use_cutmix": use_cutmix, "centre": centre}
    return {**draws, "images": nhwc(images), "targets": targets.numpy()}


def erased(height: int, width: int) -> dict[str, np.ndarray]:
    random.seed(0)
    torch.manual_seed(0)
    images = inputs((8, height, width, 3))
    noise = np.zeros((8, height, width, 3), np.float32)
    erase, corner = np.zeros(8, bool), np.zeros((8, 2), np.float32)
    area, log_aspect = np.zeros((8, 10), np.float32), np.zeros((8, 10), np.float32)
    made = timm.data.random_erasing.RandomErasing(0.7, mode="pixel", max_count=1, device="cpu")
    for i in range(8):
        recorder, blocks = Recorder(), []
        get_pixels = random_erasing._get_pixels

        def recorded(*args: Any, blocks: list[Any] = blocks, get_pixels: Any = get_pixels, **kwargs: Any) -> Any:
            blocks.append(get_pixels(*args, **kwargs))
            return blocks[-1]

        with (
            mock.patch.object(random_erasing, "random", recorder),
            mock.patch.object(random_erasing, "_get_pixels", recorded),
        ):
            made(images[i])
        erase[i] = recorder.drawn[0][1] <= 0.7
        uniform = [value for kind, value in recorder.drawn if kind == "uniform"]
        area[i, : len(uniform) // 2], log_aspect[i, : len(uniform) // 2] = uniform[::2], uniform[1::2]
        if blocks:
            (top, left), (_, h, w) = (value for kind, value in recorder.drawn if kind == "randint"), blocks[0].shape
            corner[i] = (top + 0.5) / (height - h + 1), (left + 0.5) / (width - w + 1)
            noise[i, top : top + h, left : left + w] = blocks[0].numpy().transpose(1, 2, 0)
    draws = {"erase": erase, "area": area, "log_aspect": log_aspect, "corner": corner, "noise": noise}
    return {**draws, "images": nhwc(images)}


def main() -> None:
    packages = ("timm", "torch", "torchvision", "pillow", "scikit-learn")
    made_with = {"python": platform.python_version(), **{package: version(package) for package in packages}}
    parts = {"configs": map(config, CONFIGS), "operations": operations(), "sequences": sequences()}
    with mock.patch.object(auto_augment.ImageOps, "posterize", posterize):
        listed = [f' "{name}": [\n  ' + ",\n  ".join(map(json.dumps, rows)) + "\n ]" for name, rows in parts.items()]
    content = f'{{\n "made_with": {json.dumps(made_with)},\n' + ",\n".join(listed) + "\n}\n"
    Path(__file__).with_name("goldens.json").write_text(content)

    arrays: dict[str, np.ndarray] = {}
    alphas = {"mixup": (0.8, 0.0), "cutmix": (0.0, 1.0), "both": (0.8, 1.0)}
    for mode, (kind, pair), seed in itertools.product(("batch", "pair", "elem"), alphas.items(), range(3)):
        arrays |= {f"{mode}/{kind}/{seed}/{name}": array for name, array in mixed(mode, pair, seed).items()}
    for height, width in ((12, 16), (20, 6)):
        arrays |= {f"erasing/{height}x{width}/{name}": array for name, array in erased(height, width).items()}
    np.savez_compressed(Path(__file__).with_name("mixing.npz"), **arrays)


if __name__ == "__main__":
    main()
