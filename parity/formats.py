"""Weights of our models in any format: PyTorch files, safetensors, Orbax folders."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import torch
from flax import nnx

from parity.convert import Ledger, jax_to_torch, jax_variables, torch_to_jax

TORCH_SUFFIXES = (".pth", ".tar", ".pt", ".bin", ".safetensors")


def load_into(torch_model: torch.nn.Module, path: str | Path, name: str, *, use_ema: bool = True, **sizes: Any) -> None:
    """Fills our PyTorch model `name` from a file or an Orbax folder, all of it or nothing, in the weights' own dtype.

    Raises:
        ValueError, FileNotFoundError: nothing there, unreadable, or weights of another model.
    """
    if Path(path).is_dir():
        _load_folder(torch_model, path, name, use_ema, sizes)
        return
    from t2t_torch import load_checkpoint, read_state_dict

    dtypes = {x.dtype for x in read_state_dict(path, use_ema=use_ema).values() if x.is_floating_point()}
    torch_model.to(dtype=functools.reduce(torch.promote_types, dtypes, torch.bfloat16))
    load_checkpoint(torch_model, path, use_ema=use_ema)


def _load_folder(torch_model: torch.nn.Module, path: str | Path, name: str, use_ema: bool, sizes: Any) -> None:
    import t2t_jax
    from t2t_jax.checkpoint import load_model_state

    arrays = load_model_state(path, use_ema=use_ema).arrays
    jax_model = nnx.eval_shape(lambda: t2t_jax.create_model(name, **sizes))
    variables = jax_variables(jax_model)
    problems = [f"{key} is missing" for key in variables if key not in arrays]
    problems += [f"{key} is unknown" for key in arrays if key not in variables]
    problems += [
        f"{key} is {list(arrays[key].shape)} in place of {list(variables[key].shape)}"
        for key in variables
        if key in arrays and tuple(arrays[key].shape) != tuple(variables[key].shape)
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(f"{path} does not fit {name}: {'; '.join(problems[:3])}{more}; name the model it was made for")
    for key, variable in variables.items():
        variable.set_value(arrays[key])
    jax_to_torch(jax_model, torch_model)


SIZES = ("img_size", "in_chans", "num_classes", "aux_head")


def saved_metadata(path: str | Path) -> dict[str, Any]:
    """What the weights at `path` say of themselves: metadata written with them, and sizes that their shapes tell.

    Of a PyTorch file without metadata the shapes tell `img_size` (a square assumed), `in_chans` and `num_classes`.
    """
    from t2t_jax.checkpoint import load_metadata

    known = load_metadata(path)
    if isinstance(known.get("img_size"), list):
        known["img_size"] = tuple(known["img_size"])
    return known


def saved_sizes(path: str | Path) -> dict[str, Any]:
    """The `SIZES` of the weights at `path`, as far as they tell."""
    return {key: value for key, value in saved_metadata(path).items() if key in SIZES}


def convert(source: str | Path, target: str | Path, name: str, *, use_ema: bool = True, **sizes: Any) -> Ledger:
    """Rewrites the weights of our model `name` from one format into another, bit for bit, atomically.

    The target's format follows from its name: `.pth`, `.pth.tar`, `.pt`, `.bin` (official layout), `.safetensors`,
    anything else an Orbax folder. `sizes` (img_size, in_chans, num_classes) win over what the source tells.

    Returns:
        The ledger of every tensor.

    Raises:
        ValueError, FileNotFoundError: see `load_into`; or the target cannot be written. Nothing is written then.
    """
    import t2t_jax
    import t2t_torch
    from t2t_jax.checkpoint import save_model

    known = saved_metadata(source)
    asked = {key: value for key, value in sizes.items() if value is not None}
    sizes = {**{key: known[key] for key in SIZES if key in known}, **asked}
    torch_model = t2t_torch.create_model(name, **sizes)
    load_into(torch_model, source, name, use_ema=use_ema, **sizes)
    jax_model: nnx.Module = nnx.eval_shape(lambda: t2t_jax.create_model(name, **sizes))
    with jax.enable_x64(True):  # so that float64 weights keep their bits
        ledger = torch_to_jax(torch_model, jax_model)
    metadata = {**known, "model": name, **sizes}
    if Path(target).suffix in TORCH_SUFFIXES:
        t2t_torch.save_checkpoint(torch_model, target, metadata={key: str(value) for key, value in metadata.items()})
    else:
        save_model(target, jax_model, metadata)
    return ledger
