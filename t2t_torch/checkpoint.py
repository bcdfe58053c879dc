"""Weights into a model: all of them or none, with an account of what was fitted and what was left out.

What a file holds, and how one is written, is in checkpoint_file.py, how weights are fitted to another model in fit.py;
their public names are here too.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from t2t_common.weights.adapt import CLASSIFIERS
from t2t_config import MODELS
from t2t_config.shapes import saved_grid
from t2t_config.text import few
from t2t_config.weights.load_report import LoadReport
from t2t_config.weights.metadata import from_text, take_preprocessing
from t2t_config.weights.untrusted import check_size, check_table, making
from t2t_torch.checkpoint_file import (
    Checkpoint,
    StateDict,
    read_checkpoint,
    read_state_dict,
    save_checkpoint,
)
from t2t_torch.models.registry import make_model
from t2t_torch.weights.adapt import fit
from t2t_torch.weights.positions import resize_pos_embed


def load_checkpoint(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    use_ema: bool = True,
    source_grid: tuple[int, int] | None = None,
) -> LoadReport:
    """Loads a checkpoint into one of this package's models, all of it or nothing.

    A position table for another grid is resized (see `resize_pos_embed`). `source_grid` is the file's grid,
    needed only where that is not square and the file does not say its img_size; a table with as many tokens as the
    model's is taken as it is. A first layer for other channels is adapted (see `t2t_common.weights.adapt`).
    A classifier for another number of classes is left out, and the model's own stays as it was. The report
    tells all of it; everything else has to fit.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file cannot be read (see `read_checkpoint`) or does not fit; `model` stays untouched.
    """
    checkpoint = read_checkpoint(path, use_ema=use_ema)
    try:
        fitted = fit(checkpoint.state_dict, model, source_grid or _saved_grid(checkpoint))
    except ValueError as error:
        raise ValueError(
            f"{path} does not fit this {type(model).__name__}: {error}; {_looks_like(checkpoint.state_dict)}"
        ) from None
    model.load_state_dict(fitted.weights, strict=False)  # strict is done: names and shapes were just checked
    take_preprocessing(model, from_text(checkpoint.metadata), classes="head.weight" in fitted.weights)
    return LoadReport(
        str(path),
        checkpoint.entry,
        checkpoint.is_ema,
        checkpoint.layout,
        tuple(name for name in model.state_dict() if name in fitted.weights),
        fitted.resized,
        fitted.left_out,
        fitted.missing,
        checkpoint.verified,
        checkpoint.prefix,
        checkpoint.ignored,
        tuple(name for name, value in fitted.weights.items() if not bool(torch.isfinite(value).all())),
    )


def check_described(arguments: Mapping[str, Any], path: Path) -> None:
    """Raises ValueError if `create_model(**arguments)` fails, or is a model that the file at `path` cannot hold."""
    with making(path):
        num_bytes = path.stat().st_size
        check_table(arguments, num_bytes)
        with torch.device("meta"):
            check_size(sum(x.nbytes for x in make_model(**arguments).state_dict().values()), num_bytes)


def _saved_grid(checkpoint: Checkpoint) -> tuple[int, int] | None:
    """The grid of the position table as far as the file's metadata tell it."""
    state_dict = checkpoint.state_dict
    try:
        img_size = from_text(checkpoint.metadata)["img_size"]
        positions = state_dict["pos_embed"].shape[1] - (2 if "dist_token" in state_dict else 1)
    except (KeyError, ValueError, IndexError):
        return None
    patch = state_dict.get("patch_embed.proj.weight")
    return saved_grid(img_size, positions, None if patch is None else patch.shape[-1])


def _looks_like(state_dict: StateDict) -> str:
    """The known models of the nearest names and shapes; what classes or image size decide does not count."""

    def signature(weights: Mapping[str, Tensor]) -> set[tuple[str, torch.Size]]:
        fitted = (*CLASSIFIERS, "pre_logits", "pos_embed")
        return {(name, value.shape) for name, value in weights.items() if name.split(".")[0] not in fitted}

    found, likeness = signature(state_dict), {}
    for name in MODELS:
        with torch.device("meta"):  # shapes only: all models together take half a second
            known = signature(make_model(name).state_dict())
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
