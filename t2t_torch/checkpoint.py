"""Load checkpoints into a model, atomically and with a report of adapted and skipped weights.

checkpoint_file.py reads and writes files, weights/adapt.py adapts weights to another model; their public names are
re-exported here.
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
from t2t_torch.weights.adapt import adapt_weights
from t2t_torch.weights.positions import resize_pos_embed


def load_checkpoint(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    use_ema: bool = True,
    source_grid: tuple[int, int] | None = None,
) -> LoadReport:
    """Load a checkpoint into a model of this package; on an error the model is unchanged.

    A position embedding for another grid is resized (see `resize_pos_embed`). `source_grid` is the grid of the file,
    needed only if it is not square and the file does not state its img_size; a position embedding with the model's
    number of tokens is used as it is. A first layer for another number of channels is adapted (see
    `t2t_common.weights.adapt`). A classifier for another number of classes is skipped, and the model keeps its own.
    The report lists these changes; all other weights must match.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file cannot be read (see `read_checkpoint`) or does not match the model.
    """
    checkpoint = read_checkpoint(path, use_ema=use_ema)
    try:
        fitted = adapt_weights(checkpoint.state_dict, model, source_grid or _saved_grid(checkpoint))
    except ValueError as error:
        raise ValueError(
            f"{path} does not fit this {type(model).__name__}: {error}; {_looks_like(checkpoint.state_dict)}"
        ) from None
    model.load_state_dict(fitted.weights, strict=False)  # `adapt_weights` has checked names and shapes
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


def check_model_arguments(arguments: Mapping[str, Any], path: Path) -> None:
    """Raise ValueError if `create_model(**arguments)` fails or its model is too large for the file at `path`."""
    with making(path):
        num_bytes = path.stat().st_size
        check_table(arguments, num_bytes)
        with torch.device("meta"):
            check_size(sum(x.nbytes for x in make_model(**arguments).state_dict().values()), num_bytes)


def _saved_grid(checkpoint: Checkpoint) -> tuple[int, int] | None:
    """Return the grid of the position embedding, or None if the file's metadata do not determine it."""
    state_dict = checkpoint.state_dict
    try:
        img_size = from_text(checkpoint.metadata)["img_size"]
        positions = state_dict["pos_embed"].shape[1] - (2 if "dist_token" in state_dict else 1)
    except (KeyError, ValueError, IndexError):
        return None
    patch = state_dict.get("patch_embed.proj.weight")
    return saved_grid(img_size, positions, None if patch is None else patch.shape[-1])


def _looks_like(state_dict: StateDict) -> str:
    """Name the known models with the most similar names and shapes, ignoring tensors that depend on classes or size."""

    def signature(weights: Mapping[str, Tensor]) -> set[tuple[str, torch.Size]]:
        fitted = (*CLASSIFIERS, "pre_logits", "pos_embed")
        return {(name, value.shape) for name, value in weights.items() if name.split(".")[0] not in fitted}

    found, likeness = signature(state_dict), {}
    for name in MODELS:
        with torch.device("meta"):  # shapes only: about half a second for all models
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
