"""python tests/data/token_labeling/make.py CHECKOUT

Makes golden.npz, here, by running the authors' code (zihangJiang/TokenLabeling at commit 9dbfd59) in float64: targets
of label maps, loss, MixToken, and what RandAugment does to a map. Needs torch, torchvision and scipy.

timm and types that numpy has dropped are stood in for. The crops go to RoIAlign as left, top, width, height, which is
what its boxes mean; the authors' loader hands them over as top, left, height, width.
"""

from __future__ import annotations

import importlib.util
import math
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

CLASSES, K, SIDE, GRID, BATCH = 20, 5, 9, 4, 6


def load(checkout: Path, path: str, package: str | None = None) -> Any:
    """A file of the checkout as a module."""
    name = f"{package}.{Path(path).stem}" if package else Path(path).stem
    spec = importlib.util.spec_from_file_location(name, checkout / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def in_float64(module: Any) -> None:
    """Lets a module that says float32 compute in float64."""
    torch.Tensor.float = torch.Tensor.double
    view = types.ModuleType("torch")
    view.__dict__.update(torch.__dict__, float32=torch.float64)
    module.torch = view


def stand_in_for_timm() -> None:
    for name in (
        "timm",
        "timm.models",
        *(f"timm.models.{part}" for part in ("helpers", "registry", "layers", "resnet")),
    ):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["timm.models.helpers"].load_pretrained = None
    sys.modules["timm.models.registry"].register_model = lambda function: function
    layers = sys.modules["timm.models.layers"]
    layers.DropPath, layers.trunc_normal_ = torch.nn.Identity, torch.nn.init.trunc_normal_
    layers.to_2tuple = lambda x: x if isinstance(x, tuple) else (x, x)
    resnet = sys.modules["timm.models.resnet"]
    resnet.resnet26d = resnet.resnet50d = resnet.resnet101d = None


def label_maps(draws: np.random.RandomState, side: int) -> np.ndarray:
    """(B, 2, K, side, side): scores, and classes that differ within a cell."""
    scores = draws.standard_normal((BATCH, K, side, side)) * 3 + 4
    classes = draws.rand(BATCH, CLASSES, side, side).argsort(axis=1)[:, :K]
    return np.stack([scores, classes.astype(np.float64)], axis=1)


def targets(checkout: Path, draws: np.random.RandomState) -> dict[str, np.ndarray]:
    mixup = load(checkout, "tlt/data/mixup.py")
    in_float64(mixup)
    maps = label_maps(draws, SIDE)
    crops = np.array(  # top, bottom, left, right
        [
            [0, 1, 0, 1],
            [0.1, 0.55, 0.3, 0.95],
            [0.5, 0.56, 0.9, 1],
            [0, 0.3, 0.2, 0.9],
            [0.4, 1, 0, 0.5],
            [0, 1, 0.7, 0.8],
        ]
    )
    found = {"maps": maps, "crops": crops}
    for smoothing in (0.0, 0.1):
        given = torch.zeros(BATCH, 3, K, SIDE, SIDE, dtype=torch.float64)
        given[:, :2] = torch.from_numpy(maps)
        top, bottom, left, right = crops.T
        given[:, 2, 0, 0, :4] = torch.from_numpy(np.stack([left, top, right - left, bottom - top], axis=1))
        made = mixup.mixup_target(given, CLASSES, smoothing=smoothing, device="cpu", label_size=GRID)
        found[f"targets/{smoothing}"] = made[:, :, 1:].transpose(1, 2).numpy()  # without the one-hot ground truth
    return found


def losses(checkout: Path, draws: np.random.RandomState, target: np.ndarray) -> dict[str, np.ndarray]:
    loss = load(checkout, "tlt/loss/cross_entropy.py")
    logits, token_logits = draws.standard_normal((BATCH, CLASSES)), draws.standard_normal((BATCH, GRID**2, CLASSES))
    given = torch.from_numpy(np.concatenate([np.zeros((BATCH, CLASSES, 1)), target.transpose(0, 2, 1)], axis=2))
    found = {"logits": logits, "token_logits": token_logits}
    for name, box in (("none", (0, 0, 0, 0)), ("box", (1, 0, 4, 2))):  # top, left, bottom, right
        for weight in (0.5, 1.0):
            outputs = torch.from_numpy(logits), torch.from_numpy(token_logits), box
            criterion = loss.TokenLabelCrossEntropy(dense_weight=weight, classes=CLASSES)
            found[f"loss/{name}/{weight}"] = criterion(outputs, given).numpy()
    return found


def mixing(checkout: Path, draws: np.random.RandomState) -> dict[str, np.ndarray]:
    np.int = int  # what numpy has dropped
    stand_in_for_timm()
    sys.modules["tlt_models"] = types.ModuleType("tlt_models")
    load(checkout, "tlt/models/layers.py", "tlt_models")
    lvvit = load(checkout, "tlt/models/lvvit.py", "tlt_models")
    drawn, boxes = [], []
    for rows, columns in [(14, 14)] * 6 + [(3, 8)] * 6:
        lam, centre = draws.rand(), (draws.randint(rows), draws.randint(columns))
        left = list(centre)
        lvvit.np.random.randint, kept = lambda *_, left=left: left.pop(0), np.random.randint
        top, left_edge, bottom, right = lvvit.rand_bbox((BATCH, 1, rows, columns), lam)
        lvvit.np.random.randint = kept
        drawn.append((rows, columns, lam, *centre))
        boxes.append((top, bottom, left_edge, right))
    tokens, seen = draws.standard_normal((BATCH, 3, 3, 8)), []
    model = lvvit.LV_ViT(img_size=16, embed_dim=3, depth=0, num_heads=1, p_emb="", mix_token=True, return_dense=True)
    model.forward_embeddings = lambda x: x
    model.forward_tokens = lambda x: seen.append(x) or torch.cat([x[:, :1], x], dim=1)
    model.head = model.aux_head = torch.nn.Identity()
    np.random.seed(3)
    _, back, (top, left_edge, bottom, right) = model(torch.from_numpy(tokens))
    whole = tokens.reshape(BATCH, 3, -1).transpose(0, 2, 1)
    assert np.array_equal(back.numpy(), whole)
    assert 0 < (bottom - top) * (right - left_edge) < 24
    return {
        "draws": np.array(drawn),
        "boxes": np.array(boxes),
        "tokens": whole,
        "mixed": seen[0].numpy(),
        "mixed_box": np.array((top, bottom, left_edge, right)),
    }


def augmented(checkout: Path, draws: np.random.RandomState) -> dict[str, np.ndarray]:
    augment = load(checkout, "tlt/data/random_augment_label.py")
    maps = label_maps(draws, 18)[0].astype(np.float16)
    found = {"plain": maps}
    for name, largest in (
        ("Rotate", 30),
        ("ShearX", 0.3),
        ("ShearY", 0.3),
        ("TranslateXRel", 0.45),
        ("TranslateYRel", 0.45),
    ):
        for sign in (-1, 1):
            for strength in (0.3, 0.85):
                level = sign * strength * largest
                made = augment.NAME_TO_LABELOP[name](torch.from_numpy(maps.astype(np.float32)), level)
                found[f"augmented/{name}/{sign * strength}"] = made.numpy().astype(np.float16)
    return found


def main() -> None:
    checkout, draws = Path(sys.argv[1]), np.random.RandomState(0)
    arrays = targets(checkout, draws)
    arrays |= losses(checkout, draws, arrays["targets/0.1"])
    arrays |= mixing(checkout, draws)
    arrays |= augmented(checkout, draws)
    assert all(math.isfinite(array.sum()) for array in arrays.values())
    np.savez_compressed(Path(__file__).with_name("golden.npz"), **arrays)


if __name__ == "__main__":
    main()
