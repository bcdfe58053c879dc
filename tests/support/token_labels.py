"""Token labels: what the authors' code computes (tests/data/token_labeling; make.py there made it), and little data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from t2t_config import Recipe

GRID, NUM_CLASSES = (4, 4), 20
"""Of the targets."""
BOX = (1, 4, 0, 2)
"""top, bottom, left, right of the loss with MixToken."""


def token_goldens(prefix: str = "") -> dict[str, np.ndarray]:
    """Arrays whose names begin with `prefix`, by what follows."""
    with np.load(Path(__file__).parents[1] / "data" / "token_labeling" / "golden.npz") as stored:
        found = {name.removeprefix(prefix): stored[name] for name in stored if name.startswith(prefix)}
    assert found, prefix
    return found


LABELLED = Recipe(
    model="t2t_vit_micro",
    img_size=64,
    in_chans=1,
    num_classes=4,
    mean=(0.4,),
    std=(0.2,),
    crop_pct=1.0,
    epochs=2,
    cooldown_epochs=0,
    batch_size=8,
    lr=5e-3,
    warmup_epochs=0,
    ema_decay=None,
    scale=(0.7, 1.0),
    auto_augment="rand-m9-mstd0.5-inc1",
    re_prob=0.25,
    aux_head=True,
    mix_token=1.0,
    mixup_group=2,
    data_threads=2,
    log_every=1,
)
"""Token labeling of `write_labelled_folder`."""


def write_labelled_folder(folder: Path) -> tuple[Path, Path]:
    """A tree of gray images whose pattern is their class, 16 to learn from, and a tree of their label maps."""
    draws, (y, x) = np.random.RandomState(0), np.mgrid[:48, :40] // 4
    patterns = [y % 2, x % 2, (x + y) % 2, 0 * y]
    for split, count in (("train", 16), ("val", 8)):
        for i in range(count):
            label = i % 4
            image = draws.randint(0, 100, (48, 40)) + 120 * patterns[label]
            path = folder / "images" / split / f"class{label}" / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.astype(np.uint8)).save(path)
            scores = np.stack([np.full((6, 6), 9.0), np.full((6, 6), 2.0)])
            classes = np.stack([np.full((6, 6), label), np.full((6, 6), (label + 1) % 4)])
            if split == "train":
                target = folder / "labels" / f"class{label}" / f"{i:02}.pt"
                target.parent.mkdir(parents=True, exist_ok=True)
                torch.save(torch.from_numpy(np.stack([scores, classes])).half(), target)
    return folder / "images", folder / "labels"
