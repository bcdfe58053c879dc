"""Golden values: what the authors' own code computes in float64 on weights that anyone can rebuild by name.

tests/data/golden holds one `.npz` per model: meta data, the official `state_dict_keys`, logits, activations,
loss and gradients. No weight is stored: `formula_weight` makes them from their names.
All is NumPy, with PyTorch's names and layouts.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np

FOLDERS = (
    Path(__file__).parents[1] / "data" / "golden",
    # More of the same format, if somebody keeps them beside the checkout.
    Path(__file__).parents[3] / "shared" / "golden",
)


@dataclasses.dataclass(frozen=True)
class Golden:
    """One golden file."""

    name: str
    meta: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @property
    def keys_and_shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        """The official `state_dict`, in its order."""
        return [(key, tuple(shape)) for key, shape in json.loads(str(self.arrays["state_dict_keys"]))]

    def group(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays of one kind by what follows the slash: `act`, `actnorm`, `gradnorm`, `param`."""
        return {key.split("/", 1)[1]: a for key, a in self.arrays.items() if key.startswith(prefix + "/")}


def golden_names(needs: str = "logits") -> list[str]:
    """Names of the files that hold the array `needs`: `logits` (models), `losses` (training runs), `lr`."""
    paths = {path.stem: path for folder in reversed(FOLDERS) for path in folder.glob("*.npz")}
    return sorted(name for name, path in paths.items() if needs in np.load(path).files)


def golden(name: str, folders: Iterable[Path] = FOLDERS) -> Golden:
    """The golden file `name` (without `.npz`), of the first of the folders that has it."""
    path = next(path for folder in folders if (path := folder / f"{name}.npz").is_file())
    with np.load(path) as file:
        arrays = dict(file)
    meta = json.loads(str(arrays.pop("meta"))) if "meta" in arrays else {}
    return Golden(name, meta, arrays)


def changed_golden(reference: Golden, keys: Iterable[str], folder: Path) -> Golden:
    """`reference`, read from a copy of its file in `folder` in which one number of each of the arrays is another.

    By 1e-9 of the array's norm: ten times above the widest gate, and far below what anybody would see.
    """
    arrays = dict(reference.arrays)
    for key in keys:
        arrays[key] = np.array(arrays[key], np.float64)
        arrays[key].flat[-1] += 1e-9 * np.linalg.norm(arrays[key])
    np.savez(folder / f"{reference.name}.npz", meta=json.dumps(reference.meta), **arrays)
    return golden(reference.name, [folder])


def formula_weight(key: str, shape: Iterable[int]) -> np.ndarray:
    """The weight called `key`, float64: no bias is zero and no scale is one, so that a swapped one shows."""
    shape = tuple(shape)
    z = np.asarray(np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape))
    if key.endswith(".w"):  # random features of a performer
        return 0.7 * z
    if len(shape) == 1:
        return 1 + 0.1 * z if key.endswith(".weight") else 0.1 * z
    if key in ("cls_token", "pos_embed"):
        return 0.02 * z
    return 0.5 * z / np.sqrt(np.prod(shape[1:]))


def formula_state_dict(
    keys_and_shapes: Iterable[tuple[str, Iterable[int]]], *, skip: Collection[str] = ()
) -> dict[str, np.ndarray]:
    """`formula_weight` for every key that is not in `skip`."""
    return {key: formula_weight(key, shape) for key, shape in keys_and_shapes if key not in skip}


def golden_weights(variant: str, keys_and_shapes: Iterable[tuple[str, Iterable[int]]]) -> dict[str, np.ndarray]:
    """The weights of a golden run; T2T models keep their own sinusoid `pos_embed`, which so is tested too."""
    return formula_state_dict(keys_and_shapes, skip=("pos_embed",) if variant.startswith("t2t_") else ())


def golden_input(meta: dict[str, Any]) -> np.ndarray:
    """The images, (batch, 3, img_size, img_size) in float64."""
    shape = (meta["batch"], 3, meta["img_size"], meta["img_size"])
    return np.random.RandomState(0).standard_normal(shape)


def golden_labels(meta: dict[str, Any]) -> np.ndarray:
    """The classes, (batch,)."""
    return np.array([1, 3])[: meta["batch"]]


def rel_f(a: Any, b: Any) -> float:
    """||a - b||_F / ||b||_F in float64; inf where the shapes differ or one side alone is zero."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        return float("inf")
    difference, norm = float(np.linalg.norm(a - b)), float(np.linalg.norm(b))
    if norm == 0.0:
        return 0.0 if difference == 0.0 else float("inf")
    return difference / norm


def slice_activation(x: np.ndarray) -> np.ndarray:
    """What the files keep of an output: the first image's channels 0..15, of tokens [0, middle, last]."""
    return x[0, :16] if x.ndim == 2 else x[0, [0, x.shape[1] // 2, -1], :16]


def summary(x: np.ndarray) -> np.ndarray:
    """[Frobenius norm, mean, std] of a whole output."""
    return np.array([np.linalg.norm(x), x.mean(), x.std()])


def ends(x: np.ndarray) -> np.ndarray:
    """[Frobenius norm, first element, last element] of a gradient in PyTorch's layout."""
    flat = x.reshape(-1)
    return np.array([np.linalg.norm(flat), flat[0], flat[-1]])
