"""Weights of our models in any format: PyTorch files, safetensors, Orbax folders."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from flax import nnx

from parity.convert import Ledger, jax_to_torch, jax_variables, torch_to_jax
from t2t_config.described import check_metadata

TORCH_SUFFIXES = (".pth", ".tar", ".pt", ".bin", ".safetensors")


def load_into(torch_model: torch.nn.Module, path: str | Path, name: str, *, use_ema: bool = True, **sizes: Any) -> None:
    """Fills our PyTorch model `name` from a file, an Orbax folder or the folder of a run in either framework,
    all of it or nothing, in the weights' own dtype.

    Raises:
        ValueError, FileNotFoundError: nothing there, unreadable, or weights of another model.
    """
    from t2t_common.run_folder import latest_torch_file

    path = latest_torch_file(path)
    if path.is_dir():
        _load_folder(torch_model, path, name, use_ema, sizes)
        return
    from t2t_torch import load_checkpoint, read_state_dict

    dtypes = {x.dtype for x in read_state_dict(path, use_ema=use_ema).values() if x.is_floating_point()}
    if dtypes:
        torch_model.to(dtype=functools.reduce(torch.promote_types, dtypes))
    report = load_checkpoint(torch_model, path, use_ema=use_ema)
    if report.missing:  # a fresh head is for training, not for weights that go on as they are
        raise ValueError(
            f"{path} has nothing for {', '.join(report.missing)} of this {name}: give the num_classes of its own "
            "classifier, or 0 for features"
        )


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


def saved_arguments(path: str | Path) -> dict[str, Any]:
    """Arguments of `create_model` for the weights at `path`, as far as they tell: `SIZES`, and what else was chosen."""
    known = saved_metadata(path)
    try:
        check_metadata(known)
    except ValueError as error:
        raise ValueError(f"cannot use {path}: {error}") from error
    return {key: value for key, value in known.items() if key in SIZES} | (known.get("overrides") or {})


def convert(
    source: str | Path, target: str | Path, name: str, *, use_ema: bool = True, check: bool = False, **sizes: Any
) -> Ledger:
    """Rewrites the weights of our model `name` from one format into another, bit for bit, atomically.

    The target's format follows from its name: `.pth`, `.pth.tar`, `.pt`, `.bin` (official layout), `.safetensors`,
    anything else an Orbax folder. The metadata go along (see `t2t_config.metadata`).

    Args:
        source, target: file or folder.
        name: of the model.
        use_ema: prefer the moving average where there is one.
        check: prove that both frameworks compute the same with these weights, and note the figures as `parity`.
        sizes: arguments of `create_model`, which win over what the source tells.

    Returns:
        The ledger of every tensor.

    Raises:
        ValueError, FileNotFoundError: see `load_into`; or the check fails; or the target cannot be written. Nothing is
            written then.
    """
    import t2t_jax
    import t2t_torch
    from t2t_config.metadata import describe_model, to_text
    from t2t_jax.checkpoint import save_model

    known = saved_metadata(source)
    asked = {key: value for key, value in sizes.items() if value is not None}
    sizes = {**saved_arguments(source), **asked}
    torch_model = t2t_torch.create_model(name, **sizes)
    load_into(torch_model, source, name, use_ema=use_ema, **sizes)
    jax_model: nnx.Module = nnx.eval_shape(lambda: t2t_jax.create_model(name, **sizes))
    with jax.enable_x64(True):  # so that float64 weights keep their bits
        ledger = torch_to_jax(torch_model, jax_model)
    metadata = describe_model(torch_model, {key: value for key, value in known.items() if key != "model"})
    if check:
        metadata["parity"] = parity_figures(torch_model, jax_model)
    if Path(target).suffix in TORCH_SUFFIXES:
        t2t_torch.save_checkpoint(torch_model, target, metadata=to_text(metadata))
    else:
        save_model(target, jax_model, metadata)
    return ledger


def parity_figures(torch_model: Any, jax_model: nnx.Module) -> dict[str, Any]:
    """What a forward check of one random image finds: the worst relative Frobenius errors, and under which versions.

    Raises:
        ValueError: the two differ.
    """
    from parity.check import check
    from parity.environment import fingerprint

    image = np.random.RandomState(0).standard_normal((1, torch_model.in_chans, *torch_model.img_size))
    report = check(torch_model, jax_model, image, level="forward")
    if not report.passed:
        raise ValueError(f"the two frameworks do not compute the same with these weights: {report.verdict}")

    def worst(kind: str, precision: str) -> float:
        return max(row.error for row in report.rows if (row.kind, row.precision) == (kind, precision))

    figures: dict[str, Any] = {"verdict": report.verdict}
    for precision in ("float64", "float32"):
        figures |= {
            f"worst layer, {precision}": worst("layer", precision),
            f"logits, {precision}": worst("output", precision),
        }
    versions = fingerprint()["versions"]
    return {**figures, "torch": versions["torch"], "jax": versions["jax"], "flax": versions["flax"]}
