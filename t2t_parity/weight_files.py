"""Weights of this project's models in any format: PyTorch files, safetensors, Orbax folders."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from flax import nnx

from parity.carry.arrays import same_bits, to_numpy
from parity.carry.convert import Ledger, jax_to_torch, jax_variables, state_equal, torch_to_jax
from t2t_config.models import ALIASES
from t2t_config.text import few
from t2t_config.weights.load_report import LoadReport, check_types
from t2t_config.weights.untrusted import check_metadata

TORCH_SUFFIXES = (".pth", ".tar", ".pt", ".bin", ".safetensors")


def load_into(
    torch_model: torch.nn.Module, path: str | Path, name: str, *, use_ema: bool = True, **sizes: Any
) -> LoadReport:
    """Load a file, an Orbax folder or the folder of a run in either framework into our PyTorch model `name`.

    Every tensor of the model must be present; each takes the dtype of the source.

    Raises:
        ValueError, FileNotFoundError: The source does not exist, is unreadable, or has weights of another model.
    """
    from t2t_common.workdir.folder import latest_torch_file

    path = latest_torch_file(path)
    if path.is_dir():
        return _load_folder(torch_model, path, name, use_ema, sizes)
    from t2t_torch import load_checkpoint, read_state_dict

    state = read_state_dict(path, use_ema=use_ema)
    for key, tensor in torch_model.state_dict(keep_vars=True).items():
        if key in state and state[key].is_floating_point():
            tensor.data = tensor.data.to(state[key].dtype)
    report = load_checkpoint(torch_model, path, use_ema=use_ema)
    if report.missing:  # a new head is only useful for training, not for converted weights
        raise ValueError(
            f"{path} has nothing for {', '.join(report.missing)} of this {name}: give the num_classes of its own "
            "classifier, or 0 for features"
        )
    for key in report.left_out:
        shape = tuple(state[key].shape)
        if key.endswith(".weight") and (len(shape) != 2 or 0 in shape):  # not a head for other classes
            raise ValueError(f"{path} has {key} {shape}, which is no classifier: get another copy, or save it without")
    kept = {key: tensor for key, tensor in state.items() if key not in (*report.resized, *report.left_out)}
    _check_bits(path, torch_model, kept)
    return report


def _load_folder(torch_model: torch.nn.Module, path: Path, name: str, use_ema: bool, sizes: Any) -> LoadReport:
    import t2t_jax
    from t2t_jax.checkpoint import load_model_state
    from t2t_jax.weights.torch_file import to_torch

    found = load_model_state(path, use_ema=use_ema)
    arrays = found.arrays
    jax_model = nnx.eval_shape(lambda: t2t_jax.create_model(name, **sizes))
    variables = jax_variables(jax_model)
    problems = [f"{key} is missing" for key in variables if key not in arrays]
    problems += [f"{key} is unknown" for key in arrays if key not in variables]
    problems += [
        f"{key} is {list(arrays[key].shape)} instead of {list(variables[key].shape)}"
        for key in variables
        if key in arrays and tuple(arrays[key].shape) != tuple(variables[key].shape)
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(f"{path} does not fit {name}: {'; '.join(problems[:3])}{more}; name the model it was made for")
    try:
        check_types({key: array.dtype.name for key, array in arrays.items()})
    except ValueError as error:
        raise ValueError(f"{path} does not fit {name}: {error}") from None
    for key, variable in variables.items():
        variable.set_value(arrays[key])
    jax_to_torch(jax_model, torch_model)
    _check_bits(path, torch_model, to_torch(arrays))
    loaded = tuple(torch_model.state_dict())
    return LoadReport(str(path), found.entry, found.is_ema, found.layout, loaded, {}, (), ())


def _check_bits(path: Path, model: torch.nn.Module, state: Mapping[str, Any]) -> None:
    """Raise `ValueError` unless the model contains all of these tensors bit for bit."""
    own = model.state_dict()
    different = [key for key, x in state.items() if key not in own or not same_bits(to_numpy(own[key]), to_numpy(x))]
    if different:
        raise ValueError(f"{path} cannot be carried over bit for bit: {few(different)} would be changed")


SIZES = ("img_size", "in_chans", "num_classes", "aux_head")


def saved_metadata(path: str | Path) -> dict[str, Any]:
    """Return the metadata saved with the weights at `path`, and the sizes inferred from their shapes.

    For a PyTorch file without metadata, `img_size` (assumed square), `in_chans` and `num_classes` are inferred.
    """
    from t2t_jax.checkpoint import load_metadata

    known = load_metadata(path)
    if isinstance(known.get("img_size"), list):
        known["img_size"] = tuple(known["img_size"])
    return known


def saved_arguments(path: str | Path) -> dict[str, Any]:
    """Return the known `create_model` arguments for the weights at `path`: `SIZES` and the saved overrides."""
    known = saved_metadata(path)
    try:
        check_metadata(known)
    except ValueError as error:
        raise ValueError(f"cannot use {path}: {error}") from error
    return {key: value for key, value in known.items() if key in SIZES} | (known.get("overrides") or {})


@dataclasses.dataclass(frozen=True)
class Conversion:
    """Result of a conversion.

    Attributes:
        model: Official name of the model.
        ledger: Ledger of all tensors.
        changes: Tensors that are not bit for bit those of the source, because other sizes were requested.
        notes: Notes on what was detected, ignored or decided, one sentence each.
    """

    model: str
    ledger: Ledger
    changes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def convert(
    source: str | Path,
    target: str | Path,
    name: str | None = None,
    *,
    use_ema: bool = True,
    check: bool = False,
    **sizes: Any,
) -> Ledger:
    """Call `carry_over` with the same arguments and return its ledger."""
    return carry_over(source, target, name, use_ema=use_ema, check=check, **sizes).ledger


def carry_over(
    source: str | Path,
    target: str | Path,
    name: str | None = None,
    *,
    use_ema: bool = True,
    check: bool = False,
    **sizes: Any,
) -> Conversion:
    """Convert the weights of one of this project's models from one format to another, atomically.

    The weights are preserved bit for bit, except for changes due to `sizes` that differ from the source's; these are
    listed in `Conversion.changes`. The target's format follows from its name (see `check_format`). The metadata are
    copied (see `t2t_config.weights.metadata`).

    Args:
        source, target: File or folder to read, and to write.
        name: Name of the model; None for the name recorded in the source.
        use_ema: Prefer the moving average if there is one.
        check: Check that both frameworks compute the same with these weights, and store the result as `parity`.
        sizes: Arguments of `create_model`, which override those recorded in the source.

    Raises:
        ValueError, FileNotFoundError: See `load_into`; or the source has a classifier that does not fit and no
            `num_classes` was given; or the check fails; or the target cannot be written. Nothing is written then.
    """
    import t2t_jax
    import t2t_torch
    from t2t_config.weights.metadata import CARRIED, describe_model, take_preprocessing, to_text
    from t2t_jax.checkpoint import save_model
    from t2t_jax.weights.orbax_messages import quiet_orbax

    check_format(target)
    known = saved_metadata(source)
    asked = {key: value for key, value in sizes.items() if value is not None}
    sizes = {**saved_arguments(source), **asked}
    said = known.get("model")
    name = name or said
    if name is None:
        raise ValueError(f"{source} does not name its model: add --model NAME")
    torch_model: Any = t2t_torch.create_model(name, **sizes)
    report = load_into(torch_model, source, name, use_ema=use_ema, **sizes)
    if report.left_out and "num_classes" not in asked:
        shapes = t2t_torch.read_state_dict(report.path, use_ema=use_ema)
        shown = few(f"{key} {tuple(shapes[key].shape)}" for key in report.left_out)
        raise ValueError(
            f"{source} has {shown}, for which this {name} has no place: give --num-classes to leave it out"
        )
    jax_model: nnx.Module = nnx.eval_shape(lambda: t2t_jax.create_model(name, **sizes))
    with jax.enable_x64(True):  # so that float64 weights keep their bits
        ledger = torch_to_jax(torch_model, jax_model)
    if different := state_equal(ledger, torch_model, jax_model):
        raise ValueError(f"{source} cannot be carried over bit for bit: {few(different)} would be changed")
    take_preprocessing(torch_model, known, classes=not report.left_out)
    metadata = describe_model(torch_model, {key: x for key, x in known.items() if key not in ("model", *CARRIED)})
    if check:
        metadata["parity"] = parity_figures(torch_model, jax_model)
    if Path(target).suffix in TORCH_SUFFIXES:
        t2t_torch.save_checkpoint(torch_model, target, metadata=to_text(metadata))
    else:
        with quiet_orbax():
            save_model(target, jax_model, metadata)
    changes = [f"{key} {how}" for key, how in report.resized.items()]
    changes += [f"{key} left out" for key in report.left_out]
    notes = [*_notes(source, report, said, torch_model.spec.name)]
    unfit = [key for key in CARRIED if known.get(key) is not None and key not in dict(torch_model.spec.carried)]
    if unfit:
        notes.append(f"{', '.join(unfit)} of {source} are for other channels or classes: not written")
    return Conversion(torch_model.spec.name, ledger, tuple(changes), tuple(notes))


def _notes(source: str | Path, report: LoadReport, said: str | None, name: str) -> Iterator[str]:
    """Yield notes for the user on decisions about the source."""
    if said is not None and ALIASES.get(said, said) != name:
        yield f"{source} says that it is {said}; it is taken as {name}, as asked"
    if report.is_ema:
        yield f"the moving average of {source} ({report.entry}) is taken; --raw takes the other weights"
    if report.prefix:
        yield f"the names in {source} had the prefix {report.prefix!r}, which a wrapper put before each"
    if report.ignored:
        yield f"counters of a tool and no weights: {few(report.ignored)}"
    if report.not_finite:
        yield f"warning: {report.doubt}"


def check_format(target: str | Path) -> None:
    """Raise `ValueError` if the suffix of `target` does not belong to a supported output format.

    `TORCH_SUFFIXES` are files. A name without a suffix, with a numeric one (`v1.5`) or with `.orbax` is an Orbax
    folder, and so is any existing folder (it is not replaced unless it is a checkpoint).
    """
    suffix = Path(target).suffix
    if suffix in (*TORCH_SUFFIXES, ".orbax") or not re.match(r"\.[^\W\d]", suffix) or Path(target).is_dir():
        return
    raise ValueError(
        f"cannot write {target}: no format ends with {suffix}; {', '.join(TORCH_SUFFIXES)} are files, a name without "
        "an ending is an Orbax folder"
    )


def parity_figures(torch_model: Any, jax_model: nnx.Module) -> dict[str, Any]:
    """Return the worst relative Frobenius errors of a forward check on one random image, and the package versions.

    Raises:
        ValueError: The two models differ.
    """
    from parity.environment import fingerprint
    from parity.proof.check import check

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
