"""Weights into a model: all of them or none, with an account of what was resized and what was left out.

What a file holds, and how one is written, is in checkpoint_file.py; its public names are here too.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2t_config import MODELS
from t2t_torch.checkpoint_file import (
    Checkpoint,
    StateDict,
    few,
    read_checkpoint,
    read_state_dict,
    save_checkpoint,
)
from t2t_torch.registry import create_model

CLASSIFIERS = ("head", "head_dist")


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What `load_checkpoint` did.

    Attributes:
        path: the file.
        entry: the entry of the file that was taken, '' for a bare state dict.
        is_ema: whether that entry holds EMA weights.
        loaded: the model's tensors that now hold the file's values, resized ones included.
        resized: name -> what was done to it.
        left_out: names of the file that the model has no place for.
        missing: names of the model that the file did not fill; they keep the values they had.
    """

    path: str
    entry: str
    is_ema: bool
    loaded: tuple[str, ...]
    resized: Mapping[str, str]
    left_out: tuple[str, ...]
    missing: tuple[str, ...]

    def __str__(self) -> str:
        kind = "EMA" if self.is_ema else "raw"
        source = f"entry {self.entry!r} ({kind} weights)" if self.entry else "a bare state dict"
        lines = [f"{self.path}: {len(self.loaded)} tensors loaded from {source}"]
        lines += [f"  resized: {name} {how}" for name, how in self.resized.items()]
        if self.left_out:
            lines.append(f"  left out of the file: {', '.join(self.left_out)}")
        if self.missing:
            lines.append(f"  kept as they were in the model: {', '.join(self.missing)}")
        return "\n".join(lines)


def load_checkpoint(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    use_ema: bool = True,
    source_grid: tuple[int, int] | None = None,
) -> LoadReport:
    """Loads a checkpoint into one of this package's models, all of it or nothing.

    A position table for another grid is resized (see `resize_pos_embed`). `source_grid` is the file's grid,
    needed only where that is not square; a table with as many tokens as the model's is taken as it is.
    A classifier for another number of classes is left out, and the model's own stays as it was. The report
    tells both; everything else has to fit.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file cannot be read (see `read_checkpoint`) or does not fit; `model` stays untouched.
    """
    checkpoint = read_checkpoint(path, use_ema=use_ema)
    own = model.state_dict()
    left_out = _unfit_classifier(checkpoint.state_dict, own)
    weights = {name: value for name, value in checkpoint.state_dict.items() if name not in left_out}
    missing = _absent_classifier(weights, own)
    try:
        resized = _fit_pos_embed(weights, own, model, source_grid)
        _check_fit(weights, {name: value for name, value in own.items() if name not in missing})
    except ValueError as error:
        raise ValueError(
            f"{path} does not fit this {type(model).__name__}: {error}; {_looks_like(checkpoint.state_dict)}"
        ) from None

    model.load_state_dict(weights, strict=False)  # strict is done: names and shapes were just checked
    loaded = tuple(name for name in own if name in weights)
    return LoadReport(str(path), checkpoint.entry, checkpoint.is_ema, loaded, resized, left_out, missing)


def _layer(state_dict: Mapping[str, Tensor], name: str) -> StateDict:
    return {key: value for key, value in state_dict.items() if key.startswith(name + ".")}


def _unfit_classifier(weights: StateDict, own: StateDict) -> tuple[str, ...]:
    """Names of the file's classifier where the model has one for another number of classes, or none.

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


def _absent_classifier(weights: StateDict, own: StateDict) -> tuple[str, ...]:
    """Names of the model's classifier where the file has none at all, or none any more."""
    return tuple(key for head in CLASSIFIERS if not _layer(weights, head) for key in _layer(own, head))


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


def _looks_like(state_dict: StateDict) -> str:
    """The known models of the nearest names and shapes; what classes or image size decide does not count."""

    def signature(weights: Mapping[str, Tensor]) -> set[tuple[str, torch.Size]]:
        fitted = (*CLASSIFIERS, "pre_logits", "pos_embed")
        return {(name, value.shape) for name, value in weights.items() if name.split(".")[0] not in fitted}

    found, likeness = signature(state_dict), {}
    for name in MODELS:
        with torch.device("meta"):  # shapes only: all models together take half a second
            known = signature(create_model(name).state_dict())
        likeness[name] = len(found & known) / len(found | known)
    best = max(likeness.values())
    if best < 0.5:
        return "the file is like none of list_models()"
    return f"the file looks like {few(name for name in likeness if likeness[name] == best)}"


__all__ = [
    "Checkpoint",
    "LoadReport",
    "StateDict",
    "load_checkpoint",
    "read_checkpoint",
    "read_state_dict",
    "resize_pos_embed",
    "save_checkpoint",
]
