"""python -m t2t_torch.export OUT --checkpoint PATH [--model NAME]

Exports a model with its weights to one file for any batch size: OUT.pt2 (`torch.export`) or OUT.onnx. The file is
verified (ONNX in onnxruntime) before it is moved to OUT: if its outputs differ from the model's, nothing is written and
the exit code is 1. The file includes model, sizes and preprocessing, as `metadata.json` (.pt2) or properties (.onnx).
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from t2t_common.evaluation.export_check import BATCHES, Agreement, check_agreement, sample_images
from t2t_common.evaluation.export_command import export_command
from t2t_common.io import cli
from t2t_common.io.files import check_target, replace_file
from t2t_common.io.sealed_exports import check_sealed, seal
from t2t_config.extras import install_hint
from t2t_config.weights.digests import KEY
from t2t_config.weights.metadata import describe_model, from_text, to_text
from t2t_torch.evaluate import load_for_evaluation

SUFFIXES = (".pt2", ".onnx")
METADATA = "metadata.json"
MAX_BYTES = 1536 * 2**20
"""Maximum size of the weights in ONNX: PyTorch writes larger ones to a separate file."""


@dataclasses.dataclass(frozen=True)
class ExportedModel:
    """Model loaded from an exported file, callable: images (B, C, H, W) float32 -> logits (B, num_classes), any B.

    `verified` is the checksum used to verify the file: "sha256", or "crc32" or "" for a file without digests.
    """

    run: Callable[[np.ndarray], np.ndarray]
    metadata: dict[str, Any]
    verified: str = ""

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self.run(images)


def export_model(model: Any, path: str | Path, *, metadata: Mapping[str, Any] | None = None) -> list[Agreement]:
    """Export `model` with its weights, in evaluation mode, to `path` atomically, and verify the file's outputs.

    Args:
        model: Model created by `create_model`, on the CPU and in float32; not modified.
        path: File to write, .pt2 or .onnx.
        metadata: JSON values to store in the file. Name, sizes and preprocessing default to the model's own.

    Returns:
        Errors for each tested batch size.

    Raises:
        ExportError: The outputs of the exported file differ from the model's.
        ValueError: Unknown suffix, onnx is not installed, the model is too large, or `path` cannot be written.
    """
    path = Path(path)
    _check_suffix(path)
    facts = describe_model(model, metadata)
    model = copy.deepcopy(model).eval()
    shape = (model.in_chans, *model.img_size)
    images = torch.zeros(2, *shape)  # not 1, which the exporter might treat as a constant
    batch = ({0: torch.export.Dim("batch", min=1, max=2**31 - 1)},)  # PyTorch 2.6 fails to export without a limit
    with _quiet(), torch.no_grad():
        program = torch.export.export(model, (images,), dynamic_shapes=batch)
    with replace_file(path) as temporary:
        plain = temporary.with_name(f"model{path.suffix}")  # PyTorch names the folder in the zip after the file
        if path.suffix == ".pt2":
            torch.export.save(program, plain, extra_files={METADATA: json.dumps(facts)})
        else:
            _save_onnx(program, images, batch, plain, facts)
        seal(plain)
        found = check_agreement(_compare(load_exported(plain), model, sample_images(shape)))
        plain.rename(temporary)
        return found


def _check_suffix(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise ValueError(f"cannot export to {path}: its name has to end with {' or '.join(SUFFIXES)}")


def _save_onnx(
    program: torch.export.ExportedProgram, images: torch.Tensor, batch: Any, path: Path, facts: Mapping[str, Any]
) -> None:
    size = sum(tensor.nbytes for tensor in program.state_dict.values())
    if size > MAX_BYTES:
        raise ValueError(f"the model has {size / 2**30:.1f} GiB, an ONNX file is limited to 2: export to .pt2")
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"], "dynamic_shapes": batch}
    with _needs_onnx(), _quiet():
        exported = torch.onnx.export(program, (images,), dynamo=True, verbose=False, **names)
    assert exported is not None
    exported.model.metadata_props.update(to_text(facts))
    exported.save(path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence irrelevant messages of the exporters: a deprecation inside torch, and that torchvision is missing."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _needs_onnx() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise ValueError(f"ONNX needs further packages ({error}): {install_hint('onnx')}") from error


def _compare(exported: ExportedModel, model: nn.Module, images: np.ndarray) -> list[Agreement]:
    with torch.inference_mode():
        own = model(torch.from_numpy(images)).numpy()
        oracle = copy.deepcopy(model).double()(torch.from_numpy(images).double()).numpy()
    return [Agreement.of(exported(images[:size]), own[:size], oracle[:size]) for size in BATCHES]


def load_exported(path: str | Path) -> ExportedModel:
    """Load a model from a file written by `export_model`; ONNX files run in onnxruntime, on the CPU.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: The file is not an exported model, or was changed since the export; or onnxruntime is not installed.
    """
    path = Path(path)
    _check_suffix(path)
    if not path.is_file():
        raise FileNotFoundError(f"no exported model at {path}: check the path")
    verified = check_sealed(path)
    try:
        exported = _load_pt2(path) if path.suffix == ".pt2" else _load_onnx(path)
        return dataclasses.replace(exported, verified=verified)
    except ValueError:
        raise
    except Exception as error:  # damaged files raise almost anything
        raise ValueError(
            f"{path} is not an exported model ({type(error).__name__}): create it with t2t_torch.export"
        ) from error


def _load_pt2(path: Path) -> ExportedModel:
    extra = {METADATA: ""}
    module = torch.export.load(path, extra_files=extra).module()

    @torch.inference_mode()
    def run(images: np.ndarray) -> np.ndarray:
        return module(torch.from_numpy(images)).numpy()

    return ExportedModel(run, json.loads(extra[METADATA]))


def _load_onnx(path: Path) -> ExportedModel:
    with _needs_onnx():
        import onnxruntime
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    texts = session.get_modelmeta().custom_metadata_map
    metadata = from_text({key: text for key, text in texts.items() if key != KEY})
    return ExportedModel(lambda images: session.run(None, {"images": images})[0], metadata)


def _check_target(path: Path) -> None:
    _check_suffix(path)
    check_target(path)


def main(args: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    return export_command(
        args,
        "t2t_torch",
        __doc__ or "",
        load=load_for_evaluation,
        export_model=export_model,
        check=_check_target,
    )


if __name__ == "__main__":
    sys.exit(cli.run(main))
