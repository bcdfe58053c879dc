"""A data set of 64 + 20 little images as IDX files, and a recipe that trains on it in seconds."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache

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


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Many tests here compile the same step: once is enough."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("xla")))
    reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", None)
    reset_cache()


@pytest.fixture(scope="session")
def idx_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_idx_folder(tmp_path_factory.mktemp("idx"))


@pytest.fixture(scope="session")
def recipe(idx_folder: Path) -> Recipe:
    return Recipe(
        model="t2t_vit_micro",
        data=str(idx_folder),
        img_size=16,
        in_chans=1,
        mean=(0.4,),
        std=(0.2,),
        epochs=4,
        cooldown_epochs=1,
        batch_size=8,
        lr=5e-3,
        warmup_epochs=1,
        ema_decay=0.8,
        clip_grad=5.0,
        augment="affine",
        data_threads=2,
        log_every=1,
        checkpoint_every=2,
    )
