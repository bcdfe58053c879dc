"""python -m tools.photographs FOLDER

Cuts six photographs of scikit-image and scikit-learn into square tiles, as a small data set of own images in class
folders: FOLDER/CLASS/ROW-COLUMN.png. Tiles do not overlap.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tyro
from PIL import Image

from t2t_common.io import cli
from tools.command import parse

SIDE = 64
"""Side of a tile, in pixels."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the command line."""

    folder: tyro.conf.Positional[Path]
    """Folder to create."""


def photographs() -> dict[str, np.ndarray]:
    """Return the photographs by class, each (height, width, 3) in uint8."""
    import skimage.data
    import sklearn.datasets

    names = {"astronaut": "astronaut", "cat": "chelsea", "coffee": "coffee", "rocket": "rocket"}
    images = {name: getattr(skimage.data, function)() for name, function in names.items()}
    return images | {name: sklearn.datasets.load_sample_image(f"{name}.jpg") for name in ("china", "flower")}


def write_tiles(folder: Path, side: int = SIDE) -> dict[str, int]:
    """Write the tiles of all photographs below `folder` and return their number by class.

    Raises:
        FileExistsError: The folder exists.
    """
    folder.mkdir(parents=True)
    counts = {}
    for name, image in photographs().items():
        height, width = (size // side for size in image.shape[:2])
        (folder / name).mkdir()
        for row, column in np.ndindex(height, width):
            tile = image[row * side : (row + 1) * side, column * side : (column + 1) * side]
            Image.fromarray(tile).save(folder / name / f"{row}-{column}.png")
        counts[name] = height * width
    return counts


def main(args: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    folder = parse(Options, args, "tools.photographs", __doc__).folder
    if folder.exists():
        raise ValueError(f"{folder} exists: name a new folder")
    counts = write_tiles(folder)
    print(f"{sum(counts.values())} images in {folder}: {', '.join(f'{n} {name}' for name, n in counts.items())}")
    return cli.OK


if __name__ == "__main__":
    cli.run_and_end(main)
