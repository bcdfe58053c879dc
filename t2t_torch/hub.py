"""Models to and from the Hugging Face hub, or a folder of the same files. Twin: t2t_jax/hub.py.

What lies in such a folder is t2t_config/weights/hub.py's; what both frameworks share,
t2t_common/weights/hub_models.py's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from t2t_common.weights.hub_models import load_model, save_model
from t2t_config.weights.hub import fetch, upload
from t2t_torch.checkpoint import check_described, load_checkpoint, save_checkpoint
from t2t_torch.create import create_model


def save_pretrained(model: nn.Module, folder: str | Path, *, metadata: Mapping[str, Any] | None = None) -> None:
    """Writes `model` (of `create_model`) as a folder for `from_pretrained` of either framework, for timm and the hub.

    Args:
        model: its weights are kept in their own dtypes.
        folder: created if need be; a README.md there stays.
        metadata: JSON values by key for config.json and the card: `recipe`, `metrics`, `parity`, `license`, ...; they
            win over what the model tells of its preprocessing (`mean`, `std`, `crop_pct`, `interpolation`).

    Raises:
        ValueError: the model is not of `create_model` or was changed since, or the folder cannot be written.
    """
    _save(model, folder, metadata, where=str(folder))


def _save(model: nn.Module, folder: str | Path, metadata: Mapping[str, Any] | None, where: str) -> None:
    save_model(
        model,
        folder,
        metadata,
        where=where,
        own_shapes=_shapes,
        made_shapes=_made_shapes,
        write_weights=lambda model, path, texts: save_checkpoint(model, path, metadata=texts),
    )


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def _made_shapes(arguments: Mapping[str, Any]) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return _shapes(create_model(**arguments))


def push_to_hub(
    model: nn.Module,
    repo_id: str,
    *,
    metadata: Mapping[str, Any] | None = None,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    message: str = "Upload model",
) -> str:
    """Uploads what `save_pretrained` writes; returns the address of the commit.

    Args:
        model: of `create_model`.
        repo_id: "user/name", or "name" for the user who is logged in; made if need be.
        metadata: as of `save_pretrained`.
        private: of a repository that is made.
        revision: the branch; None for the main one.
        token: of the hub; None for the one that is logged in.
        message: of the commit.

    Raises:
        ValueError: as `save_pretrained`, or the hub refuses, or huggingface_hub is not installed.
    """

    def write(folder: Path) -> None:
        _save(model, folder, metadata, where=repo_id)

    return upload(write, repo_id, private=private, revision=revision, token=token, message=message)


def from_pretrained(
    repo_or_folder: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | None = None,
    **arguments: Any,
) -> nn.Module:
    """The model of a hub id or of a folder, with its weights, in evaluation mode and float32.

    Args:
        repo_or_folder: a folder, else the id of a model on the hub.
        revision, cache_dir, token: as of huggingface_hub; not for folders.
        arguments: of `create_model`, in place of the saved ones; other sizes are fitted (see `load_checkpoint`), and a
            UserWarning tells how.

    Raises:
        FileNotFoundError, ValueError: no such model, damaged files, no classifier in them, or sizes that cannot be
            fitted.
    """
    folder = fetch(repo_or_folder, revision=revision, cache_dir=cache_dir, token=token)
    model = load_model(folder, arguments, check=check_described, create=create_model, load=load_checkpoint)
    return model.eval()


__all__ = ["from_pretrained", "push_to_hub", "save_pretrained"]
