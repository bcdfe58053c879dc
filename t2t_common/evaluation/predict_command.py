"""Classify images; framework-independent part and command line of both `predict` modules."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tyro.conf import Positional

from t2t_common.data.images import find_images, open_image
from t2t_common.data.preprocess import Preprocess, evaluation_image
from t2t_common.evaluation.weights_options import WeightsOptions
from t2t_common.io.files import check_target, write_json
from t2t_common.io.terminal import status
from t2t_config.class_names import class_names
from t2t_config.text import escaped

Forward = Callable[[np.ndarray], np.ndarray]
"""Images (B, H, W, C) float32 -> logits (B, num_classes)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictOptions(WeightsOptions):
    """Command-line options."""

    images: Positional[tuple[Path, ...]]
    """Image files, or folders of images."""
    top: int = 5
    """Number of classes to show per image."""
    classes: Path | None = None
    """File with class names, one per line or JSON; None uses the checkpoint's, or ImageNet's for 1000 classes."""
    batch_size: int = 16
    """Batch size."""
    json: Path | None = None
    """Also write the results to this file."""

    def __post_init__(self) -> None:
        for name in ("top", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give at least 1")
        if not self.images:
            raise ValueError("no images: name files or folders")


@dataclasses.dataclass(frozen=True)
class Guess:
    """A predicted class of an image."""

    index: int
    name: str
    probability: float


class Prediction(NamedTuple):
    """An image and its predicted classes, most probable first."""

    image: Path
    guesses: list[Guess]


def predict(
    paths: Sequence[Path], preprocess: Preprocess, forward: Forward, names: Sequence[str], *, top: int, batch_size: int
) -> Iterator[Prediction]:
    """Yield the `top` classes of each image, in the order of `paths`; all batches have the same size.

    Raises:
        ValueError: A file is not an image.
    """
    for start in range(0, len(paths), batch_size):
        chosen = paths[start : start + batch_size]
        images = np.zeros((min(batch_size, len(paths)), *preprocess.size, preprocess.in_chans), np.float32)
        with status(f"{start} of {len(paths)} images"):
            for image, path in zip(images, chosen, strict=False):
                image[...] = evaluation_image(open_image(path), preprocess)
            found = forward(images)[: len(chosen)]
        for path, logits in zip(chosen, found, strict=True):
            yield Prediction(path, best_classes(logits, names, top))


def best_classes(logits: np.ndarray, names: Sequence[str], top: int) -> list[Guess]:
    """Return the `top` classes for the logits (num_classes,) of one image, most probable first."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max())
    probabilities = exponentials / exponentials.sum()
    best = np.argsort(-probabilities, kind="stable")[:top]
    return [Guess(int(i), names[i], float(probabilities[i])) for i in best]


def show_predictions(
    options: PredictOptions, preprocess: Preprocess, forward: Forward, num_classes: int, saved: Mapping[str, Any]
) -> None:
    """Classify the images in `options`, print the predictions, and write them to the JSON file, if requested.

    Args:
        options: Command-line options.
        preprocess: Preprocessing of the images.
        forward: Forward function of the model.
        num_classes: Number of outputs of the model.
        saved: Metadata of the checkpoint, for the class names.

    Raises:
        FileNotFoundError, ValueError: An image or the file of class names does not exist, there are no images, the
            model has no classifier, or the output file cannot be written.
    """
    if num_classes == 0:
        raise ValueError("this model has no classifier: give weights that have one")
    check_target(options.json)
    names = class_names(num_classes, file=options.classes, saved=saved.get("class_names"))
    found = []
    paths = find_images(options.images)
    for prediction in predict(paths, preprocess, forward, names, top=options.top, batch_size=options.batch_size):
        print(escaped(str(prediction.image)))
        for guess in prediction.guesses:
            print(f"  {100 * guess.probability:6.2f} %  {guess.name}")
        found.append(
            {"image": str(prediction.image), "top": [dataclasses.asdict(guess) for guess in prediction.guesses]}
        )
    facts = {
        "checkpoint": str(options.checkpoint),
        "preprocessing": dataclasses.asdict(preprocess),
        "predictions": found,
    }
    write_json(options.json, facts)
