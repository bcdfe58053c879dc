"""python -m t2t_jax.export OUT --checkpoint PATH [--model NAME]

Exports a model with its weights to one StableHLO file for any batch size, on CPU, CUDA and TPU. The file is verified
before it is moved to OUT: if its outputs differ from the model's, nothing is written and the exit code is 1.

OUT is a zip of `model.jax_export` (written by `jax.export`, includes the weights), `metadata.json` (model, sizes,
preprocessing) and `sha256.json` (digests of both). Load it with `load_exported`, or without this package with
`jax.export.deserialize(zipfile.ZipFile(OUT).read("model.jax_export")).call(images)`.
"""

from __future__ import annotations

import contextlib
import json
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export

from t2t_common.evaluation.export_check import BATCHES, Agreement, check_agreement, sample_images
from t2t_common.evaluation.export_command import export_command
from t2t_common.io import cli
from t2t_common.io.files import replace_file
from t2t_common.io.sealed_exports import check_sealed, seal
from t2t_common.io.zips import open_zip
from t2t_config.weights.json_limits import parse
from t2t_config.weights.metadata import describe_model
from t2t_config.weights.untrusted import MAX_EXPANSION
from t2t_jax.evaluate import load_for_evaluation

PROGRAM, METADATA = "model.jax_export", "metadata.json"
PLATFORMS = ("cpu", "cuda", "tpu")
MAX_BYTES = 2**31 - 2**20
"""Maximum size of the weights: the file format of `jax.export` is limited to 2 GiB."""


class ExportedModel:
    """Model loaded from an exported file, callable: images (B, H, W, C) float32 -> logits (B, num_classes), any B.

    `verified` is the checksum used to verify the file: "sha256", or "crc32" or "" for a file without digests.
    """

    def __init__(self, exported: export.Exported, metadata: dict[str, Any], verified: str = "") -> None:
        self.exported, self.metadata, self.verified = exported, metadata, verified
        self._call = jax.jit(exported.call)

    def __call__(self, images: Any) -> jax.Array:
        return self._call(images)


def export_model(model: Any, path: str | Path, *, metadata: Mapping[str, Any] | None = None) -> list[Agreement]:
    """Export `model` with its weights to `path` atomically, and verify the outputs of the exported file.

    Args:
        model: Model created by `create_model`, in evaluation mode and float32.
        path: File to write.
        metadata: JSON values to store in the file. Name, sizes and preprocessing default to the model's own.

    Returns:
        Errors for each tested batch size.

    Raises:
        ExportError: The outputs of the exported file differ from the model's.
        ValueError: The model is too large for one file, or `path` cannot be written.
    """
    facts = describe_model(model, metadata)
    graphdef, state = nnx.split(model)
    size = sum(array.nbytes for array in jax.tree.leaves(state))
    if size > MAX_BYTES:
        raise ValueError(f"the model has {size / 2**30:.1f} GiB, an export is limited to 2: choose a smaller one")

    def forward(images: jax.Array, state: nnx.State = state) -> jax.Array:
        return nnx.merge(graphdef, state)(images)

    (batch,) = export.symbolic_shape("batch")
    shape = (*model.img_size, model.in_chans)
    images = jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
    exported = export.export(jax.jit(lambda images: forward(images)), platforms=PLATFORMS)(images)
    with replace_file(Path(path)) as temporary:
        with zipfile.ZipFile(temporary, "w") as file:
            file.writestr(PROGRAM, exported.serialize())
            file.writestr(METADATA, json.dumps(facts, indent=1) + "\n")
        seal(temporary)
        return check_agreement(_compare(load_exported(temporary), forward, state, sample_images(shape)))


def _compare(exported: ExportedModel, forward: Any, state: nnx.State, images: np.ndarray) -> list[Agreement]:
    model = np.asarray(jax.jit(forward)(images, state))
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda array: array.astype(np.float64), state)
        oracle = np.asarray(jax.jit(forward)(images.astype(np.float64), wide))
    return [Agreement.of(np.asarray(exported(images[:size])), model[:size], oracle[:size]) for size in BATCHES]


def load_exported(path: str | Path) -> ExportedModel:
    """Load a model from a file written by `export_model`.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: The file is not an exported model, or was changed since the export.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no exported model at {path}: check the path")
    with _called(path), open_zip(Path(path)) as file:
        if sum(info.file_size for info in file.infolist()) > MAX_EXPANSION * Path(path).stat().st_size:
            raise ValueError("it unpacks to far more than its size")
    verified = check_sealed(Path(path))
    with _called(path):
        with open_zip(Path(path)) as file:
            program, metadata = file.read(PROGRAM), parse(file.read(METADATA))
        return ExportedModel(export.deserialize(bytearray(program)), metadata, verified)


@contextlib.contextmanager
def _called(path: str | Path) -> Iterator[None]:
    """Convert any exception into a ValueError that names `path`."""
    try:
        yield
    except Exception as error:  # damaged files raise almost anything
        raise ValueError(
            f"{path} is not an exported model ({type(error).__name__}): create it with t2t_jax.export"
        ) from error


def main(args: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    return export_command(
        args,
        "t2t_jax",
        __doc__ or "",
        load=load_for_evaluation,
        export_model=export_model,
        runs_on=f"{', '.join(PLATFORMS)}, any batch size",
    )


if __name__ == "__main__":
    sys.exit(cli.run(main))
