"""A data set of 64 + 20 little images as IDX files, and recipes that train on it in seconds."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from t2t_config import Recipe

TRAIN_IMAGES, VAL_IMAGES, CLASSES = 64, 20, 4


def idx_bytes(array: np.ndarray) -> bytes:
    """A uint8 array as an IDX file."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


SMALL = Recipe(
    model="t2t_vit_micro",
    img_size=8,
    in_chans=1,
    mean=(0.0,),
    std=(1.0,),
    crop_pct=1.0,
    epochs=3,
    cooldown_epochs=1,
    batch_size=4,
    augment="affine",
    data_threads=2,
)
"""For tests of the input: 8x8 gray images, three epochs and one more."""


def write_idx_folder(folder: Path) -> Path:
    """Four classes of 8x8 images, told apart by which quarter is bright."""
    folder.mkdir(parents=True, exist_ok=True)
    draws = np.random.RandomState(0)
    for prefix, count in (("train", TRAIN_IMAGES), ("t10k", VAL_IMAGES)):
        labels = np.arange(count) % CLASSES
        images = draws.randint(0, 100, (count, 8, 8))
        for image, label in zip(images, labels, strict=True):
            row, column = divmod(int(label), 2)
            image[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 120
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    return folder


def small_recipe(folder: Path) -> Recipe:
    """Trains on the images of `write_idx_folder(folder)`."""
    return Recipe(
        model="t2t_vit_micro",
        data=str(folder),
        img_size=16,
        in_chans=1,
        mean=(0.4,),
        std=(0.2,),
        epochs=4,
        cooldown_epochs=1,
        batch_size=8,
        lr=8e-3,
        warmup_epochs=1,
        ema_decay=0.8,
        clip_grad=5.0,
        augment="affine",
        data_threads=2,
        log_every=1,
        checkpoint_every=2,
    )
