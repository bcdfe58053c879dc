"""The command line of both `evaluate` modules."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from t2t_common.data.classes import for_head
from t2t_common.data.readers.sources import Source, notes_of
from t2t_common.evaluation.accuracy import Accuracy
from t2t_common.evaluation.per_class import ClassAccuracy, as_text
from t2t_common.evaluation.weights_options import WeightsOptions
from t2t_common.io.files import write_text
from t2t_config.class_names import class_names, read_names


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateOptions(WeightsOptions):
    """Options of the command line."""

    checkpoint: Path = dataclasses.field()  # required here
    """A run's folder, a folder of save_pretrained, or a .pth, .pth.tar or .safetensors file; in JAX also a checkpoint
    folder."""
    data: str
    """"digits" or a folder (see open_source); its val or test images are used."""
    batch_size: int = 64
    """Images per step."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the computation."""
    per_class: bool = False
    """Also show the accuracy of every class, worst first, and what it is taken for."""
    classes: Path | None = None
    """Names of the model's outputs, one per line or JSON, by which those of the data are found too; None takes the
    checkpoint's or the data's, or ImageNet's for 1000 classes."""
    json: Path | None = None
    """Also write the result to this file, with the accuracy of every class."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}: give at least 1")


class Result(NamedTuple):
    """Accuracy over all images, and of every class, worst first."""

    accuracy: Accuracy
    classes: list[ClassAccuracy]


def labelled_for(
    num_classes: int, source: Source, options: EvaluateOptions, saved: Mapping[str, Any]
) -> tuple[Source, list[str]]:
    """`source` with the labels of the model's outputs, found by name (see classes.py), and names of the outputs.

    What the user should know of data and labels goes to stderr.

    Args:
        num_classes: outputs of the model.
        source: the images.
        options: of the command line; may name the classes.
        saved: metadata of the weights.

    Raises:
        FileNotFoundError, ValueError: as `for_head` and `class_names`.
    """
    named = class_names(num_classes, file=options.classes) if options.classes is not None else None
    lines = read_names(options.classes) if options.classes is not None else None
    known = saved.get("class_names")
    labelled, notes = for_head(source, num_classes, known, lines)
    for note in (*notes_of(source), *notes):
        print(note, file=sys.stderr)
    # Names of the data are those of the outputs only where labels are taken as they are.
    own = source.class_names if labelled is source else None
    return labelled, named or class_names(num_classes, saved=known or own)


def new_confusion(num_classes: int) -> np.ndarray:
    """Images by class (row) and first guess (column), none yet.

    Raises:
        ValueError: there are too many classes for the memory.
    """
    try:
        return np.zeros((num_classes, num_classes), np.int64)
    except (MemoryError, ValueError) as error:  # the latter beyond what can be addressed
        raise ValueError(
            f"num_classes {num_classes:,} is too large: counting what each class is taken for needs "
            f"{8 * num_classes**2 / 2**30:,.0f} GiB"
        ) from error


def show_result(options: EvaluateOptions, result: Result) -> None:
    """Prints `result`, and writes the JSON file where one is asked for.

    Raises:
        ValueError: that cannot be written.
    """
    if options.per_class:
        print(as_text(result.classes))
    print(result.accuracy)
    if options.json is not None:
        facts = {**result.accuracy.figures, "checkpoint": str(options.checkpoint), "data": options.data}
        write_text(
            options.json, json.dumps({**facts, "classes": [one.to_json() for one in result.classes]}, indent=1) + "\n"
        )
