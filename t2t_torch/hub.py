"""Models to and from the Hugging Face hub, or a folder of the same files. Twin: t2t_jax/hub.py.

What lies in such a folder is t2t_config/weights/hub.py's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from t2t_config import model_config
from t2t_config.weights.hub import CONFIG, WEIGHTS, differences, fetch, read_metadata, upload, write_folder
from t2t_config.weights.metadata import create_arguments, describe_model, take_preprocessing, to_text
from t2t_config.weights.untrusted import making
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
    facts = describe_model(model, metadata)
    with torch.device("meta"):
        like = create_model(**create_arguments(facts)).state_dict()
    problems = differences({k: v.shape for k, v in model.state_dict().items()}, {k: v.shape for k, v in like.items()})
    if problems:
        raise ValueError(f"the model is no {facts['model']} any more: {problems}")
    write_folder(folder, facts, lambda path: save_checkpoint(model, path, metadata=to_text(facts)), where)


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
    with making(folder / CONFIG):
        metadata = read_metadata(folder)
        saved = create_arguments(metadata)
        check_described(saved, folder / WEIGHTS)
    model: Any = create_model(**{**saved, **arguments})
    other_classes = model.num_classes != saved.get("num_classes", model_config(saved["name"]).num_classes)
    other_head = arguments.get("aux_head", False) and not saved.get("aux_head", False)
    report = load_checkpoint(model, folder / WEIGHTS)
    report.warn(fresh_classifiers=other_classes or other_head)
    take_preprocessing(model, metadata, classes=not other_classes)
    return model.eval()


__all__ = ["from_pretrained", "push_to_hub", "save_pretrained"]
