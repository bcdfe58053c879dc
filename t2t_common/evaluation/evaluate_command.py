"""Command line shared by both `evaluate` modules."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from t2t_common.data.classes import for_head
from t2t_common.data.readers.formats import is_unsplit, open_source
from t2t_common.data.readers.sources import Source, notes_of
from t2t_common.evaluation.accuracy import Accuracy
from t2t_common.evaluation.per_class import ClassAccuracy, as_text
from t2t_common.evaluation.weights_options import WeightsOptions
from t2t_common.io import cli
from t2t_common.io.files import check_target, write_json
from t2t_config.bounds import check_bounds
from t2t_config.class_names import class_names, read_names


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateOptions(WeightsOptions):
    """Command-line options."""

    checkpoint: Path = dataclasses.field()  # required here
    """Weights to load: a .pth, .pth.tar or .safetensors file, a folder of save_pretrained, or a run's folder; in JAX
    also a checkpoint folder."""
    data: str
    """Data set: "digits" or a folder (see open_source); its val or test images are used."""
    val_fraction: float | None = None
    """For a folder of class folders: evaluate the images that training with this --val-fraction holds out; 0: all. None
    uses the fraction that the weights were trained with."""
    batch_size: int = 64
    """Batch size."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the computation."""
    per_class: bool = False
    """Also show the accuracy of every class, worst first, and its most frequent confusions."""
    classes: Path | None = None
    """File with the class names of the model's outputs, one per line or JSON, also used to match the classes of the
    data; None uses the names of the checkpoint or the data, or ImageNet's for 1000 classes."""
    json: Path | None = None
    """Also write the results, including the accuracy of every class, to this file."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}: give at least 1")
        if self.val_fraction:
            check_bounds({"val_fraction": self.val_fraction})


class Result(NamedTuple):
    """Accuracy over all images, and per class, worst first."""

    accuracy: Accuracy
    classes: list[ClassAccuracy]


def open_validation(options: EvaluateOptions, num_classes: int, saved: Mapping[str, Any]) -> Source:
    """Open the validation images of `options`; class folders are split as in the training of the weights.

    Args:
        options: Command-line options.
        num_classes: Number of outputs of the model.
        saved: Metadata of the weights.

    Raises:
        FileNotFoundError, ValueError: See `open_source`.
    """
    fraction = options.val_fraction
    recipe = saved.get("recipe")
    if fraction is None and isinstance(recipe, dict) and is_unsplit(options.data):
        fraction = recipe.get("val_fraction")
        check_bounds({} if fraction is None else {"val_fraction": fraction})
        if fraction is not None:
            print("evaluating the images held out in training; --val-fraction 0 evaluates all", file=sys.stderr)
    return open_source(options.data, "val", num_classes, fraction or None)


def labelled_for(
    num_classes: int, source: Source, options: EvaluateOptions, saved: Mapping[str, Any]
) -> tuple[Source, list[str]]:
    """Map the labels of `source` to the model's outputs by class name (see t2t_common/data/classes.py).

    Notes on the data and labels are printed to stderr.

    Args:
        num_classes: Number of outputs of the model.
        source: Labelled images.
        options: Command-line options, which may include class names.
        saved: Metadata of the weights.

    Returns:
        The source with mapped labels, and the class names of the outputs.

    Raises:
        FileNotFoundError, ValueError: See `for_head` and `class_names`.
    """
    named = class_names(num_classes, file=options.classes) if options.classes is not None else None
    lines = read_names(options.classes) if options.classes is not None else None
    known = saved.get("class_names")
    labelled, notes = for_head(source, num_classes, known, lines)
    for note in (*notes_of(source), *notes):
        print(note, file=sys.stderr)
    # The class names of the data apply to the outputs only if the labels are unchanged.
    own = source.class_names if labelled is source else None
    return labelled, named or class_names(num_classes, saved=known or own)


def new_confusion(num_classes: int) -> np.ndarray:
    """Return an empty confusion matrix (row: true class, column: predicted class).

    Raises:
        ValueError: The matrix for this number of classes does not fit in memory.
    """
    try:
        return np.zeros((num_classes, num_classes), np.int64)
    except (MemoryError, ValueError) as error:  # ValueError: beyond the address space
        raise ValueError(
            f"num_classes {num_classes:,} is too large: the confusion matrix needs "
            f"{8 * num_classes**2 / 2**30:,.0f} GiB"
        ) from error


def evaluate_command(args: Sequence[str], package: str, doc: str, evaluate: Callable[[EvaluateOptions], Result]) -> int:
    """Run the command of `package`, described by `doc`, and return its exit code."""
    options = cli.parse(EvaluateOptions, args, prog=f"python -m {package}.evaluate", description=doc.strip())
    check_target(options.json)
    show_result(options, evaluate(options))
    return cli.OK


def show_result(options: EvaluateOptions, result: Result) -> None:
    """Print `result`, and write it to the JSON file, if requested.

    Raises:
        ValueError: The file cannot be written.
    """
    if options.per_class:
        print(as_text(result.classes))
    print(result.accuracy)
    facts = {**result.accuracy.figures, "checkpoint": str(options.checkpoint), "data": options.data}
    write_json(options.json, {**facts, "classes": [one.to_json() for one in result.classes]})
