"""Golden values of timm's evaluation transform on scikit-learn's two photographs; needs timm and torchvision.

python tests/data/preprocess/make.py   # writes goldens.json beside this file
"""

from __future__ import annotations

import hashlib
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import timm.data
from PIL import Image

PHOTOGRAPHS = Path(sklearn.__file__).parent / "datasets" / "images"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BOXES = {"whole": None, "portrait": (180, 0, 420, 427), "small": (40, 30, 141, 120), "strip": (0, 200, 640, 233)}
CASES: list[dict[str, Any]] = [
    {"img_size": size, "crop_pct": crop_pct, "interpolation": interpolation}
    for size, crop_pct, interpolation in [
        (224, 0.9, "bicubic"),
        (224, 0.875, "bilinear"),
        (224, 1.0, "bicubic"),
        (225, 0.9, "bicubic"),
        (384, 0.9, "bicubic"),
        (384, 1.0, "bicubic"),
        ((288, 160), 0.9, "bicubic"),
        ((160, 288), 0.95, "bicubic"),
        ((224, 225), 0.5, "bilinear"),
    ]
]


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def golden(image: Image.Image, case: dict[str, Any]) -> dict[str, Any]:
    """What timm makes of `image`: digests of the (H, W, 3) pixels, uint8 and normalised float32, and three pixels."""
    size = case["img_size"]
    arguments = {**case, "input_size": (3, *size) if isinstance(size, tuple) else size, "mean": MEAN, "std": STD}
    del arguments["img_size"]
    plain, normalised = (
        timm.data.create_transform(**arguments, normalize=normalize)(image).numpy().transpose(1, 2, 0)
        for normalize in (False, True)
    )
    height, width, _ = plain.shape
    spots = [(0, 0), (height // 2, width // 3), (height - 1, width - 1)]
    return {
        "uint8": digest(plain),
        "float32": digest(normalised),
        "pixels": [[row, column, plain[row, column].tolist()] for row, column in spots],
    }


def main() -> None:
    results = []
    for name in ("china.jpg", "flower.jpg"):
        with Image.open(PHOTOGRAPHS / name) as photograph:
            photograph = photograph.convert("RGB")
        for box in BOXES.values():
            image = photograph if box is None else photograph.crop(box)
            results += [{"image": name, "box": box, **case, **golden(image, case)} for case in CASES]
    packages = ("timm", "torch", "torchvision", "pillow", "scikit-learn")
    made_with = {"python": platform.python_version(), **{package: version(package) for package in packages}}
    rows = ",\n  ".join(map(json.dumps, results))
    content = f'{{\n "made_with": {json.dumps(made_with)},\n "goldens": [\n  {rows}\n ]\n}}\n'
    Path(__file__).with_name("goldens.json").write_text(content)


if __name__ == "__main__":
    main()
