"""A checkpoint's weights made to fit another model: other image sizes, other channels, other classes.

Twin: t2t_torch/weights/adapt.py. Shapes: P prefix tokens, h w and H W grids of tokens, C channels of the images, K
pixels of a window, O outputs. All is numpy in float64; `load_arrays` rounds once to the model's dtypes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from t2t_config.shapes import SOFT_SPLITS
from t2t_config.weights.load_report import check_types
from t2t_jax.state import model_arrays

Arrays = dict[str, np.ndarray]

CLASSIFIERS = ("head", "head_dist", "aux_head")

CONVOLUTIONS = ("patch_embed.proj.kernel", "tokens_to_token.soft_split0.kernel")
"""First layers that are convolutions: of ViT, and of the T2T module with tokens_type 'convolution'."""

SOFT_SPLIT = "tokens_to_token.attention1."
"""What the first soft split feeds: `norm1` and a linear layer, over the features (C, kh, kw) of a window."""


@dataclasses.dataclass(frozen=True)
class Fitted:
    """Weights for a model, and what was done to them (see `LoadReport`)."""

    weights: Arrays
    resized: Mapping[str, str]
    left_out: tuple[str, ...]
    missing: tuple[str, ...]


def fit(
    arrays: Mapping[str, np.ndarray],
    model: nnx.Module,
    source_grid: tuple[int, int] | None = None,
    *,
    fresh_classifiers: bool = True,
) -> Fitted:
    """`arrays` fitted to `model`; both stay as they are. Whether the rest fits, `load_arrays` says.

    The position table goes to the model's grid (`resize_pos_embed`; `source_grid` is needed only where the table is
    for no square), the first layer to its channels (`adapt_in_chans`). Classifiers that the model does not have are
    left out, with `fresh_classifiers` also those for other classes.

    Raises:
        ValueError: a position table that is for no square, or not for `source_grid`; or numbers that no weight is made
            of (complex, whole).
    """
    own = model_arrays(model)
    check_types({name: array.dtype.name for name, array in arrays.items() if name in own})
    left_out = _unfit_classifiers(arrays, own, fresh_classifiers)
    weights = {name: array for name, array in arrays.items() if name not in left_out}
    missing = _absent_classifiers(weights, own) if fresh_classifiers else ()
    resized = _fit_pos_embed(weights, own, model, source_grid) | adapt_in_chans(weights, own)
    return Fitted(weights, resized, left_out, missing)


# ---- classifiers ----


def _layer(arrays: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in arrays.items() if key.startswith(name + ".")}


def _unfit_classifiers(weights: Mapping[str, Any], own: Mapping[str, Any], fresh: bool) -> tuple[str, ...]:
    """Names of the file's classifiers where the model has none, or (`fresh`) one for another number of classes.

    ViT's `pre_logits` goes with it: the in21k models lose that layer when their classes change.
    """
    names: list[str] = []
    for head in CLASSIFIERS:
        theirs, ours = _layer(weights, head), _layer(own, head)
        classes = [{value.shape[-1:] for value in layer.values()} for layer in (theirs, ours)]
        if not ours or (fresh and theirs.keys() == ours.keys() and classes[0] != classes[1]):
            names += theirs
    if names and not _layer(own, "pre_logits"):
        names += _layer(weights, "pre_logits")
    return tuple(names)


def _absent_classifiers(weights: Mapping[str, Any], own: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the model's classifiers where the file has none at all, or none any more."""
    return tuple(key for head in CLASSIFIERS if not _layer(weights, head) for key in _layer(own, head))


# ---- positions ----


def _fit_pos_embed(
    weights: Arrays, own: Mapping[str, Any], model: Any, source_grid: tuple[int, int] | None
) -> dict[str, str]:
    """Makes the position table in `weights` one for the model's grid; name -> what was done, if anything."""
    table, target = weights.get("pos_embed"), own.get("pos_embed")
    if table is None or target is None or table.ndim != 3 or table.shape[2] != target.shape[2]:
        return {}  # nothing to resize; `load_arrays` says what is wrong
    grid, prefix = model.grid_size, model.num_prefix_tokens
    if source_grid is None:
        if table.shape == target.shape:
            return {}
        source_grid = _square_grid(table.shape[1] - prefix)
    if tuple(source_grid) == grid:
        return {}
    weights["pos_embed"] = resize_pos_embed(table, source_grid, grid, num_prefix_tokens=prefix)
    return {"pos_embed": f"{source_grid[0]}x{source_grid[1]} -> {grid[0]}x{grid[1]} (bicubic)"}


def _square_grid(tokens: int) -> tuple[int, int]:
    side = math.isqrt(max(tokens, 0))
    if side == 0 or side * side != tokens:
        raise ValueError(f"its pos_embed has {tokens} positions, no square: give source_grid=(height, width)")
    return side, side


def resize_pos_embed(
    table: np.ndarray, source_grid: tuple[int, int], grid: tuple[int, int], *, num_prefix_tokens: int = 1
) -> np.ndarray:
    """A position table (1, P + h * w, C) for another grid: (1, P + H * W, C), in float64.

    PyTorch's `interpolate(mode='bicubic')`: cubic convolution with a = -0.75, half-pixel centres, edges repeated, no
    antialias. (`jax.image.resize` has a = -0.5 and antialiases.) The first P = `num_prefix_tokens` rows (class and
    distillation token) stay.

    Raises:
        ValueError: the table does not have P + h * w rows.
    """
    height, width = source_grid
    if table.shape[1] != num_prefix_tokens + height * width:
        raise ValueError(
            f"pos_embed {table.shape} does not hold {num_prefix_tokens} + {height}x{width} tokens: check source_grid"
        )
    table = table.astype(np.float64)
    prefix, image = table[:, :num_prefix_tokens], table[:, num_prefix_tokens:].reshape(1, height, width, -1)
    rows, columns = cubic_weights(height, grid[0]), cubic_weights(width, grid[1])
    image = np.einsum("Hh,Ww,bhwc->bHWc", rows, columns, image, optimize=True)
    return np.concatenate((prefix, image.reshape(1, grid[0] * grid[1], -1)), axis=1)


def cubic_weights(size: int, new_size: int, a: float = -0.75) -> np.ndarray:
    """(new_size, size): what each old position gives to each new one by cubic convolution (Keys 1981, equation 4)."""
    centre = (np.arange(new_size) + 0.5) * (size / new_size) - 0.5
    weights = np.zeros((new_size, size))
    for offset in (-1, 0, 1, 2):
        position = np.floor(centre).astype(int) + offset
        d = np.abs(centre - position)
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        np.add.at(weights, (np.arange(new_size), position.clip(0, size - 1)), np.where(d <= 1, near, far))
    return weights


# ---- channels ----


def adapt_in_chans(weights: Arrays, own: Mapping[str, Any]) -> dict[str, str]:
    """Makes the first layer in `weights` one for the model's channels, in place; name -> what was done, if anything.

    What is done, and where it is exact: see the twin in t2t_torch/weights/adapt.py.
    """
    done = {}
    for name in CONVOLUTIONS:  # (K, K, C, O)
        if name in weights and name in own and weights[name].ndim == own[name].ndim == 4:
            old, new = weights[name].shape[2], own[name].shape[2]
            if old != new:
                weights[name] = _adapt(weights[name].astype(np.float64), new, axis=2)
                done[name] = _how(old, new)
    return done | _adapt_soft_split(weights, own)


def _adapt(weight: np.ndarray, in_chans: int, axis: int = 0) -> np.ndarray:
    """`weight` with C channels along `axis` for `in_chans` channels: the sum for one, else repeated and scaled."""
    if in_chans == 1:
        return weight.sum(axis=axis, keepdims=True)
    return _repeat(weight, in_chans, axis) * (weight.shape[axis] / in_chans)


def _repeat(x: np.ndarray, in_chans: int, axis: int = 0) -> np.ndarray:
    """The channels along `axis` in turn, `in_chans` of them."""
    return x.take(np.arange(in_chans) % x.shape[axis], axis=axis)


def _how(old: int, new: int) -> str:
    return f"{old} -> {new} channels ({'summed' if new == 1 else f'repeated, times {old}/{new}'})"


def _adapt_soft_split(weights: Arrays, own: Mapping[str, Any]) -> dict[str, str]:
    linear = "attn.qkv" if f"{SOFT_SPLIT}attn.qkv.kernel" in own else "kqv"
    names = [f"{SOFT_SPLIT}{name}" for name in ("norm1.scale", "norm1.bias", f"{linear}.kernel")]
    window = SOFT_SPLITS[0][0] ** 2
    if any(name not in weights or name not in own for name in names):
        return {}  # no soft split
    old, new = weights[names[0]].shape[0] // window, own[names[0]].shape[0] // window
    shapes = [weights[name].shape for name in names]
    if old == new or shapes != [(old * window,), (old * window,), (old * window, own[names[2]].shape[1])]:
        return {}  # nothing to adapt, or something is wrong that `load_arrays` names
    scale, shift, weight = (
        weights[name].astype(np.float64).reshape(old, window, -1) for name in names
    )  # (C, K, 1 or O)
    if linear == "attn.qkv":
        q, k, v = np.split(weight, 3, axis=2)
        weight = np.concatenate((q * math.sqrt(new / old), k, v), axis=2)
    if new == 1:
        folded, offset = (weight * scale).sum(axis=0), (weight * shift).sum(axis=(0, 1))
        fitted = np.ones(window), np.ones(window), folded + (offset - folded.sum(axis=0)) / window
    else:
        fitted = _repeat(scale, new), _repeat(shift, new), _adapt(weight, new)
    weights |= {name: value.reshape(own[name].shape) for name, value in zip(names, fitted, strict=True)}
    norm = f"{old} -> {new} channels ({'taken into the next layer' if new == 1 else 'repeated'})"
    return {names[0]: norm, names[1]: norm, names[2]: _how(old, new)}
