"""Models to and from the Hugging Face hub, or a folder of the same files. Twin: t2t_torch/hub.py.

What lies in such a folder is t2t_config/hub.py's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from t2t_config.hub import WEIGHTS, differences, fetch, read_metadata, upload, write_folder
from t2t_config.metadata import ARGUMENTS, create_arguments, describe_model, to_text
from t2t_jax.registry import create_model
from t2t_jax.state import load_arrays, model_arrays

DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
"""Of weights, by safetensors' names."""


def save_pretrained(model: nnx.Module, folder: str | Path, *, metadata: Mapping[str, Any] | None = None) -> None:
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


def _save(model: nnx.Module, folder: str | Path, metadata: Mapping[str, Any] | None, where: str) -> None:
    facts = describe_model(model, metadata)
    like = nnx.eval_shape(lambda: create_model(**create_arguments(facts)))
    problems = differences(_shapes(model), _shapes(like))
    if problems:
        raise ValueError(f"the model is no {facts['model']} any more: {problems}")
    write_folder(folder, facts, lambda path: save_safetensors(model, path, metadata=to_text(facts)), where)


def _shapes(model: nnx.Module) -> dict[str, tuple[int, ...]]:
    return {".".join(map(str, path)): leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(model))}


def push_to_hub(
    model: nnx.Module,
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
) -> nnx.Module:
    """The model of a hub id or of a folder, with its weights, in evaluation mode and in `param_dtype` (float32).

    PyTorch is needed only where `arguments` ask for other sizes than the saved ones.

    Args:
        repo_or_folder: a folder, else the id of a model on the hub.
        revision, cache_dir, token: as of huggingface_hub; not for folders.
        arguments: of `create_model`, in place of the saved ones; other sizes are fitted (see `load_pretrained`).

    Raises:
        FileNotFoundError, ValueError: no such model, damaged files, or sizes that cannot be fitted.
    """
    folder = fetch(repo_or_folder, revision=revision, cache_dir=cache_dir, token=token)
    saved = create_arguments(read_metadata(folder))
    model = create_model(**{**saved, **arguments})
    if all(arguments.get(name) in (None, saved.get(name)) for name in ARGUMENTS):
        load_safetensors(model, folder / WEIGHTS)
    else:
        source_grid = cast(Any, nnx.eval_shape(lambda: create_model(**saved))).grid_size
        load_pretrained(model, folder / WEIGHTS, source_grid=source_grid)
    return model


def load_pretrained(model: nnx.Module, path: str | Path, *, source_grid: tuple[int, int] | None = None) -> None:
    """Fills `model` (of `create_model`) from a PyTorch file, in place, through its PyTorch twin.

    The twin's `load_checkpoint` reads every layout and fits other sizes; what the file does not fill, such as a head
    for other classes, keeps the values it has.

    Raises:
        FileNotFoundError, ValueError: as `t2t_torch.load_checkpoint`, or PyTorch is not installed.
    """
    try:
        import t2t_torch
        from parity import jax_to_torch, torch_to_jax
    except ImportError as error:
        raise ValueError(f"{path} needs PyTorch to read ({error}): pip install 't2t-vit[torch]'") from error
    twin = t2t_torch.create_model(**create_arguments(describe_model(model)))
    jax_to_torch(model, twin, cast=True)
    t2t_torch.load_checkpoint(twin, path, source_grid=source_grid)
    torch_to_jax(twin, model, cast=True)


def save_safetensors(model: nnx.Module, path: str | Path, *, metadata: Mapping[str, str] | None = None) -> None:
    """Writes the weights of `model` under PyTorch's names and in its layouts, in their own dtypes; without PyTorch.

    The file is written in place: see `save_pretrained` for the atomic way.
    """
    from parity.ledger import build_ledger, torch_arrays, torch_twin

    arrays = {name: np.asarray(array) for name, array in model_arrays(model).items()}
    tensors = torch_arrays(build_ledger(torch_twin(model), model), arrays)
    safetensors.numpy.save_file(tensors, path, dict(metadata or {}))


def load_safetensors(model: nnx.Module, path: str | Path) -> None:
    """Fills `model` from a file in PyTorch's names and layouts, in place and in its own dtypes; without PyTorch.

    Raises:
        ValueError: damaged, or weights of another model or size; `model` is untouched.
    """
    from parity.ledger import build_ledger, jax_arrays

    try:
        content = safetensors.deserialize(Path(path).read_bytes())
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is truncated, corrupt or no safetensors file ({error}): get it again") from error
    tensors = {
        name: np.frombuffer(found["data"], DTYPES[found["dtype"]]).reshape(found["shape"]) for name, found in content
    }
    try:
        arrays = jax_arrays(build_ledger(tensors, model), tensors)
    except ValueError as error:
        raise ValueError(f"{path} does not fit this {type(model).__name__}: {error}") from None
    load_arrays(model, arrays)


__all__ = ["from_pretrained", "push_to_hub", "save_pretrained"]
