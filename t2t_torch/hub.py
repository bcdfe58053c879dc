"""Save models to and load them from the Hugging Face hub or a local folder. Twin: t2t_jax/hub.py.

t2t_config/weights/hub.py defines the contents of the folder, t2t_common/weights/hub_models.py the code shared by both
frameworks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from t2t_common.weights.hub_models import load_model, save_model
from t2t_config.weights.hub import fetch, upload
from t2t_torch.checkpoint import check_model_arguments, load_checkpoint, save_checkpoint
from t2t_torch.create import create_model


def save_pretrained(model: nn.Module, folder: str | Path, *, metadata: Mapping[str, Any] | None = None) -> None:
    """Save `model` as a folder that `from_pretrained` of either framework, timm and the hub can read.

    Args:
        model: Model created by `create_model`. Dtypes are preserved.
        folder: Folder to write, created if needed; an existing README.md is kept.
        metadata: JSON values for config.json and the model card: `recipe`, `metrics`, `parity`, `license`, ...; they
            override the model's own preprocessing (`mean`, `std`, `crop_pct`, `interpolation`).

    Raises:
        ValueError: The model was not created by `create_model` or was changed since, or the folder cannot be written.
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
    """Upload the files that `save_pretrained` writes, and return the URL of the commit.

    Args:
        model: Model created by `create_model`.
        repo_id: "user/name", or "name" for the logged-in user; created if needed.
        metadata: See `save_pretrained`.
        private: Whether a newly created repository is private.
        revision: Branch to commit to; None for the main one.
        token: Hub access token; None for that of the logged-in user.
        message: Commit message.

    Raises:
        ValueError: See `save_pretrained`; also if the hub rejects the upload or huggingface_hub is not installed.
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
    """Load a model with its weights from the hub or a folder, in evaluation mode and float32.

    Args:
        repo_or_folder: Local folder, or the id of a model on the hub.
        revision, cache_dir, token: Passed to huggingface_hub; not used for folders.
        arguments: Arguments of `create_model` that override the saved ones; weights for other sizes are adapted (see
            `load_checkpoint`) with a UserWarning.

    Raises:
        FileNotFoundError, ValueError: There is no such model, its files are damaged or have no classifier, or its
            weights cannot be adapted to the requested sizes.
    """
    folder = fetch(repo_or_folder, revision=revision, cache_dir=cache_dir, token=token)
    model = load_model(folder, arguments, check=check_model_arguments, create=create_model, load=load_checkpoint)
    return model.eval()


__all__ = ["from_pretrained", "push_to_hub", "save_pretrained"]
