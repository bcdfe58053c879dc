"""A checkpoint's weights made to fit another model: other image sizes, other channels, other classes.

Twin: t2t_jax/weights/adapt.py. Shapes: P prefix tokens, h w and H W grids of tokens, C channels of the images, K
pixels of a window, O outputs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2t_config.shapes import SOFT_SPLITS
from t2t_config.text import few
from t2t_config.weights.load_report import check_types

StateDict = dict[str, Tensor]

CLASSIFIERS = ("head", "head_dist", "aux_head")

CONVOLUTIONS = ("patch_embed.proj.weight", "tokens_to_token.soft_split0.weight")
"""First layers that are convolutions: of ViT, and of the T2T module with tokens_type 'convolution'."""

SOFT_SPLIT = "tokens_to_token.attention1."
"""What the first soft split feeds: `norm1` and a linear layer, over the features (C, kh, kw) of a window."""


@dataclasses.dataclass(frozen=True)
class Fitted:
    """Weights that fit a model, and what was done to them (see `LoadReport`)."""

    weights: StateDict
    resized: Mapping[str, str]
    left_out: tuple[str, ...]
    missing: tuple[str, ...]


def fit(state_dict: Mapping[str, Tensor], model: nn.Module, source_grid: tuple[int, int] | None = None) -> Fitted:
    """`state_dict` fitted to `model`; both stay as they are.

    The position table goes to the model's grid (`resize_pos_embed`; `source_grid` is needed only where the table is
    for no square), the first layer to its channels (`adapt_in_chans`). Classifiers for other classes are left out.

    Raises:
        ValueError: names or shapes that are none of these; they are counted, and the first few named. Or numbers that
            no weight is made of (complex, whole).
    """
    own = model.state_dict()
    check_types({name: str(x.dtype).removeprefix("torch.") for name, x in state_dict.items() if name in own})
    left_out = _unfit_classifiers(state_dict, own)
    weights = {name: value for name, value in state_dict.items() if name not in left_out}
    missing = _absent_classifiers(weights, own)
    resized = _fit_pos_embed(weights, own, model, source_grid) | adapt_in_chans(weights, own)
    _check_fit(weights, {name: value for name, value in own.items() if name not in missing})
    return Fitted(weights, resized, left_out, missing)


# ---- classifiers ----


def _layer(state_dict: Mapping[str, Tensor], name: str) -> StateDict:
    return {key: value for key, value in state_dict.items() if key.startswith(name + ".")}


def _unfit_classifiers(weights: Mapping[str, Tensor], own: StateDict) -> tuple[str, ...]:
    """Names of the file's classifiers where the model has one for another number of classes, or none.

    ViT's `pre_logits` goes with it: the in21k models lose that layer when their classes change.
    """
    names: list[str] = []
    for head in CLASSIFIERS:
        theirs, ours = _layer(weights, head), _layer(own, head)
        classes = [{value.shape[:1] for value in layer.values()} for layer in (theirs, ours)]
        if not ours or (theirs.keys() == ours.keys() and classes[0] != classes[1]):
            names += theirs
    if names and not _layer(own, "pre_logits"):
        names += _layer(weights, "pre_logits")
    return tuple(names)


def _absent_classifiers(weights: StateDict, own: StateDict) -> tuple[str, ...]:
    """Names of the model's classifiers where the file has none at all, or none any more."""
    return tuple(key for head in CLASSIFIERS if not _layer(weights, head) for key in _layer(own, head))


# ---- positions ----


def _fit_pos_embed(
    weights: StateDict, own: StateDict, model: nn.Module, source_grid: tuple[int, int] | None
) -> dict[str, str]:
    """Makes the position table in `weights` one for the model's grid; name -> what was done, if anything."""
    table, target = weights.get("pos_embed"), own.get("pos_embed")
    if table is None or target is None or table.ndim != 3 or table.shape[2] != target.shape[2]:
        return {}  # nothing to resize; `_check_fit` says what is wrong
    grid, prefix = cast(tuple[int, int], model.grid_size), cast(int, model.num_prefix_tokens)
    if source_grid is None:
        if table.shape == target.shape:
            return {}
        source_grid = _square_grid(table.shape[1] - prefix)
    if tuple(source_grid) == grid:
        return {}
    # In the wider of the two precisions, so that a float64 model gets float64 interpolation.
    table = table.to(torch.promote_types(table.dtype, target.dtype))
    weights["pos_embed"] = resize_pos_embed(table, source_grid, grid, num_prefix_tokens=prefix)
    return {"pos_embed": f"{source_grid[0]}x{source_grid[1]} -> {grid[0]}x{grid[1]} (bicubic)"}


def _square_grid(tokens: int) -> tuple[int, int]:
    side = math.isqrt(max(tokens, 0))
    if side == 0 or side * side != tokens:
        raise ValueError(f"its pos_embed has {tokens} positions, no square: give source_grid=(height, width)")
    return side, side


def resize_pos_embed(
    table: Tensor, source_grid: tuple[int, int], grid: tuple[int, int], *, num_prefix_tokens: int = 1
) -> Tensor:
    """A position table (1, P + h * w, C) for another grid: (1, P + H * W, C).

    The grid goes through `F.interpolate(mode='bicubic')`, as the authors' `resize_pos_embed` does (kernel
    a = -0.75, half-pixel centres, no antialias), in the table's precision and never below float32. The first
    P = `num_prefix_tokens` rows (class and distillation token) stay.

    Raises:
        ValueError: the table does not have P + h * w rows.
    """
    height, width = source_grid
    if table.shape[1] != num_prefix_tokens + height * width:
        raise ValueError(
            f"pos_embed {tuple(table.shape)} does not hold {num_prefix_tokens} + {height}x{width} tokens: "
            "check source_grid"
        )
    prefix, positions = table[:, :num_prefix_tokens], table[:, num_prefix_tokens:]
    image = positions.unflatten(1, (height, width)).permute(0, 3, 1, 2)
    image = image.to(torch.promote_types(table.dtype, torch.float32))
    image = F.interpolate(image, size=grid, mode="bicubic", align_corners=False)
    return torch.cat((prefix, image.flatten(2).transpose(1, 2).to(table.dtype)), dim=1)


# ---- channels ----


def adapt_in_chans(weights: StateDict, own: Mapping[str, Tensor]) -> dict[str, str]:
    """Makes the first layer in `weights` one for the model's channels, in place; name -> what was done, if anything.

    As timm's `adapt_input_conv`: one channel gets the sum over the old ones, so that a grey image gives what it gave as
    three equal channels; more channels repeat the old ones in turn, scaled by old / new, so that an image whose
    channels are repeated whole (3 -> 6) gives what it gave. (Other numbers, 3 -> 4, are timm's approximation.)

    After a soft split both stay exact although a LayerNorm stands before the linear layer: repeated features have the
    same mean and variance as one of each. For one channel the norm's scale and shift, which differ between the
    old channels, go into the linear layer: with M its weights times the scale, summed over channels, and v its
    weights times the shift, summed over features, the new weights are M + (v - M 1) 1^T / K, and the norm's scale
    and shift all ones. What a LayerNorm normalised sums to zero, so the second term adds nothing to M n, and the
    shift gives v. A TokenTransformer's scale (C * K)^-0.5 changes with C, so its q is scaled back.

    Computed in float64, rounded once.
    """
    done = {}
    for name in CONVOLUTIONS:
        if name in weights and name in own and weights[name].ndim == own[name].ndim == 4:
            weight, in_chans = weights[name], own[name].shape[1]
            if weight.shape[1] != in_chans:
                weights[name] = _adapt(weight.double(), in_chans).to(torch.promote_types(weight.dtype, own[name].dtype))
                done[name] = _how(weight.shape[1], in_chans)
    return done | _adapt_soft_split(weights, own)


def _adapt(weight: Tensor, in_chans: int) -> Tensor:
    """(O, C, ...) for `in_chans` channels: the sum for one, else repeated and scaled."""
    if in_chans == 1:
        return weight.sum(dim=1, keepdim=True)
    return _repeat(weight, in_chans) * (weight.shape[1] / in_chans)


def _repeat(x: Tensor, in_chans: int) -> Tensor:
    """(_, C, ...) -> (_, in_chans, ...): the channels in turn."""
    return x[:, torch.arange(in_chans) % x.shape[1]]


def _how(old: int, new: int) -> str:
    return f"{old} -> {new} channels ({'summed' if new == 1 else f'repeated, times {old}/{new}'})"


def _adapt_soft_split(weights: StateDict, own: Mapping[str, Tensor]) -> dict[str, str]:
    linear = "attn.qkv" if f"{SOFT_SPLIT}attn.qkv.weight" in own else "kqv"
    names = [f"{SOFT_SPLIT}{name}" for name in ("norm1.weight", "norm1.bias", f"{linear}.weight")]
    window = SOFT_SPLITS[0][0] ** 2
    if any(name not in weights or name not in own for name in names):
        return {}  # no soft split
    old, new = weights[names[0]].shape[0] // window, own[names[0]].shape[0] // window
    shapes = [tuple(weights[name].shape) for name in names]
    if old == new or shapes != [(old * window,), (old * window,), (len(own[names[2]]), old * window)]:
        return {}  # nothing to adapt, or something is wrong that `_check_fit` names
    scale, shift, weight = (weights[name].double().reshape(-1, old, window) for name in names)  # (1 or O, C, K)
    if linear == "attn.qkv":
        q, k, v = weight.chunk(3)
        weight = torch.cat((q * math.sqrt(new / old), k, v))
    if new == 1:
        folded, offset = (weight * scale).sum(dim=1), (weight * shift).sum(dim=(1, 2))
        folded += (offset - folded.sum(dim=1))[:, None] / window
        fitted = torch.ones(window), torch.ones(window), folded
    else:
        fitted = _repeat(scale, new), _repeat(shift, new), _adapt(weight, new)
    for name, value in zip(names, fitted, strict=True):
        dtype = torch.promote_types(weights[name].dtype, own[name].dtype)
        weights[name] = value.reshape(own[name].shape).to(dtype)
    norm = f"{old} -> {new} channels ({'taken into the next layer' if new == 1 else 'repeated'})"
    return {names[0]: norm, names[1]: norm, names[2]: _how(old, new)}


# ---- everything else ----


def _check_fit(weights: StateDict, own: StateDict) -> None:
    """Raises one ValueError for all names and shapes in which `weights` and `own` differ."""
    problems = {
        "missing": [name for name in own if name not in weights],
        "unexpected": [name for name in weights if name not in own],
        "of another shape": [
            f"{name} {tuple(weights[name].shape)} in place of {tuple(value.shape)}"
            for name, value in own.items()
            if name in weights and weights[name].shape != value.shape
        ],
    }
    found = [f"{len(names)} {what} ({few(names)})" for what, names in problems.items() if names]
    if found:
        raise ValueError(", ".join(found))
