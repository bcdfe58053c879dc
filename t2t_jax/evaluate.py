"""python -m t2t_jax.evaluate --model NAME --checkpoint PATH --data DIR

Top-1 and top-5 of a checkpoint (Orbax folder, .pth, .pth.tar, .safetensors), counted exactly over every
image.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from t2t_common import cli
from t2t_common.files import check_target, write_text
from t2t_common.options import WeightsOptions
from t2t_config.class_names import class_names
from t2t_jax.checkpoint import load_metadata, load_weights
from t2t_jax.data import Preprocess, check_classes, eval_batches, open_source
from t2t_jax.mesh import local_rows, make_mesh, put_batch, put_tree, sum_processes
from t2t_jax.metrics import count_top_k, first_guess
from t2t_jax.per_class import ClassAccuracy, as_text, class_report
from t2t_jax.registry import create_model
from t2t_jax.state import Arrays, model_arrays, split_model
from t2t_jax.step import Batch, make_forward

Forward = Callable[[Arrays, Any], "jax.Array | np.ndarray"]


class Accuracy(NamedTuple):
    """Counts over all images, and the shares they make."""

    images: int
    top1_correct: int
    top5_correct: int

    @property
    def top1(self) -> float:
        """Share of right first guesses, in per cent."""
        return 100 * self.top1_correct / self.images

    @property
    def top5(self) -> float:
        """Share of labels among the five best guesses, in per cent."""
        return 100 * self.top5_correct / self.images

    @property
    def figures(self) -> dict[str, float]:
        """Everything by name."""
        return {**self._asdict(), "top1": self.top1, "top5": self.top5}


class Predictions(NamedTuple):
    """Logits (N, num_classes) and labels (N,) of all images, in the data's order."""

    logits: np.ndarray
    labels: np.ndarray


def predict(forward: Forward, arrays: Arrays, batches: Iterable[Batch]) -> Predictions:
    """Logits of every real image in `batches` (see `eval_batches`).

    Args:
        forward: from `make_forward`.
        arrays: of the model, trained and frozen.
        batches: all of one size, with `mask`.
    """
    logits, labels = [], []
    for batch in batches:
        real = np.asarray(batch["mask"])
        logits.append(np.asarray(forward(arrays, batch["image"]))[real])
        labels.append(np.asarray(batch["label"])[real])
    return Predictions(np.concatenate(logits), np.concatenate(labels))


def accuracy(
    forward: Forward, arrays: Arrays, batches: Iterable[Batch], *, confusion: np.ndarray | None = None
) -> Accuracy:
    """Exact counts over every real image in `batches`, of all processes together; arguments as of `predict`.

    Every image of this process is also added to `confusion` (num_classes, num_classes): row its class, column the first
    guess.
    """
    total = np.zeros(3, np.int64)
    for batch in batches:
        logits, labels = predict(forward, arrays, [batch])
        if confusion is not None:
            np.add.at(confusion, (labels, first_guess(logits)), 1)
        total += [len(labels), count_top_k(logits, labels, 1), count_top_k(logits, labels, 5)]
    return Accuracy(*map(int, sum_processes(total)))


def forward_on(mesh: Mesh, graphdef: nnx.GraphDef) -> Forward:
    """`make_forward` on the devices of `mesh`: (arrays, this process's images) -> their logits.

    Args:
        mesh: devices; the images have to divide among them.
        graphdef: of the model in evaluation mode.
    """
    if mesh.size == 1:
        return make_forward(graphdef)
    forward = make_forward(graphdef, mesh)
    return lambda arrays, images: local_rows(forward(arrays, put_batch(images, mesh)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(WeightsOptions):
    """Options of the command line."""

    checkpoint: Path = dataclasses.field()  # required here
    """A run's folder, a checkpoint folder, or a .pth, .pth.tar or .safetensors file."""
    data: str
    """"digits" or a folder (see open_source); its val or test images are used."""
    batch_size: int = 64
    """Images per step."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the computation."""
    per_class: bool = False
    """Also show the accuracy of every class, worst first, and what it is taken for."""
    classes: Path | None = None
    """Names of the classes, one per line or JSON; None takes the checkpoint's or the data's, or ImageNet's for 1000
    classes."""
    json: Path | None = None
    """Also write the result to this file, with the accuracy of every class."""


def load_for_evaluation(options: WeightsOptions, *, dtype: Any = None) -> tuple[Any, Preprocess, dict[str, Any]]:
    """The model of `options` with its weights, in evaluation mode; how its images are prepared; the metadata.

    Raises:
        FileNotFoundError, ValueError: no such checkpoint or model, or they do not belong together.
    """
    path = options.weights
    saved = load_metadata(path)
    arguments, how = options.choose(saved)
    model = create_model(**arguments, dtype=dtype)
    report = load_weights(model, path, use_ema=options.ema)
    if report.resized or report.left_out:
        print(report, file=sys.stderr)
    return model, how, saved


class Result(NamedTuple):
    """Accuracy over all images, and of every class, worst first."""

    accuracy: Accuracy
    classes: list[ClassAccuracy]


def evaluate(options: Options) -> Result:
    """Accuracy of the checkpoint on the validation images.

    Raises:
        FileNotFoundError, ValueError: the checkpoint or the data cannot be used; the message says why.
    """
    dtype = jnp.bfloat16 if options.dtype == "bfloat16" else None
    model, how, saved = load_for_evaluation(options, dtype=dtype)
    source = open_source(options.data, "val")
    check_classes(source, model.num_classes)
    names = class_names(model.num_classes, file=options.classes, saved=saved.get("class_names") or source.class_names)
    mesh = make_mesh()
    forward = forward_on(mesh, split_model(model)[0])
    batch_size = -(-options.batch_size // mesh.size) * mesh.size
    confusion = np.zeros((len(names), len(names)), np.int64)
    batches = eval_batches(source, how, batch_size)
    counts = accuracy(forward, put_tree(model_arrays(model), mesh), batches, confusion=confusion)
    return Result(counts, class_report(confusion, names))


def main(args: Sequence[str]) -> int:
    """The command; its exit code."""
    description = (__doc__ or "").strip()
    options = cli.parse(Options, args, prog="python -m t2t_jax.evaluate", description=description)
    if options.json is not None:
        check_target(options.json)
    result, classes = evaluate(options)
    if options.per_class:
        print(as_text(classes))
    print(
        f"top-1 {result.top1:.2f} % ({result.top1_correct} of {result.images})   "
        f"top-5 {result.top5:.2f} % ({result.top5_correct} of {result.images})"
    )
    if options.json is not None:
        facts = {**result.figures, "checkpoint": str(options.checkpoint), "data": options.data}
        facts["classes"] = [one.to_json() for one in classes]
        write_text(options.json, json.dumps(facts, indent=1) + "\n")
    return cli.OK


if __name__ == "__main__":
    sys.exit(cli.run(main))
