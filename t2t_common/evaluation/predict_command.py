"""Images to the best classes, whatever computes the logits; the command line of both `predict` modules."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tyro.conf import Positional

from t2t_common.data.images import find_images, open_image
from t2t_common.data.preprocess import Preprocess, evaluation_image
from t2t_common.evaluation.weights_options import WeightsOptions
from t2t_common.io.files import check_target, write_text
from t2t_common.io.terminal import status
from t2t_config.class_names import class_names
from t2t_config.text import escaped

Forward = Callable[[np.ndarray], np.ndarray]
"""Images (B, H, W, C) float32 -> logits (B, num_classes)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictOptions(WeightsOptions):
    """Options of the command line."""

    images: Positional[tuple[Path, ...]]
    """Images, and folders whose images are taken."""
    top: int = 5
    """How many classes to show."""
    classes: Path | None = None
    """Names of the classes, one per line or JSON; None takes the checkpoint's, or ImageNet's for 1000 classes."""
    batch_size: int = 16
    """Images per step."""
    json: Path | None = None
    """Also write the result to this file."""

    def __post_init__(self) -> None:
        for name in ("top", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give at least 1")
        if not self.images:
            raise ValueError("no images: name files or folders")


@dataclasses.dataclass(frozen=True)
class Guess:
    """One of an image's best classes."""

    index: int
    name: str
    probability: float


class Prediction(NamedTuple):
    """An image and its best classes, best first."""

    image: Path
    guesses: list[Guess]


def predict(
    paths: Sequence[Path], how: Preprocess, forward: Forward, names: Sequence[str], *, top: int, batch_size: int
) -> Iterator[Prediction]:
    """The `top` classes of every image, in the order of `paths`; all batches have the same size.

    Raises:
        ValueError: a file is no image.
    """
    for start in range(0, len(paths), batch_size):
        chosen = paths[start : start + batch_size]
        images = np.zeros((min(batch_size, len(paths)), *how.size, how.in_chans), np.float32)
        with status(f"{start} of {len(paths)} images"):
            for image, path in zip(images, chosen, strict=False):
                image[...] = evaluation_image(open_image(path), how)
            found = forward(images)[: len(chosen)]
        for path, logits in zip(chosen, found, strict=True):
            yield Prediction(path, best_classes(logits, names, top))


def best_classes(logits: np.ndarray, names: Sequence[str], top: int) -> list[Guess]:
    """The `top` classes by the logits (num_classes,) of one image, best first."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max())
    probabilities = exponentials / exponentials.sum()
    best = np.argsort(-probabilities, kind="stable")[:top]
    return [Guess(int(i), names[i], float(probabilities[i])) for i in best]


def show_predictions(
    options: PredictOptions, how: Preprocess, forward: Forward, num_classes: int, saved: Mapping[str, Any]
) -> None:
    """Predicts the images of `options`, prints what is found, and writes the JSON file where one is asked for.

    Args:
        options: of the command line.
        how: the preprocessing.
        forward: the model.
        num_classes: width of its logits.
        saved: the checkpoint's metadata, for the names of the classes.

    Raises:
        FileNotFoundError, ValueError: no such image or file of names, no image, a model without classes, or a file
            that cannot be written.
    """
    if num_classes == 0:
        raise ValueError("this model has no classifier: give weights that have one")
    if options.json is not None:
        check_target(options.json)
    names = class_names(num_classes, file=options.classes, saved=saved.get("class_names"))
    found = []
    paths = find_images(options.images)
    for prediction in predict(paths, how, forward, names, top=options.top, batch_size=options.batch_size):
        print(escaped(str(prediction.image)))
        for guess in prediction.guesses:
            print(f"  {100 * guess.probability:6.2f} %  {guess.name}")
        found.append(
            {"image": str(prediction.image), "top": [dataclasses.asdict(guess) for guess in prediction.guesses]}
        )
    if options.json is not None:
        facts = {"checkpoint": str(options.checkpoint), "preprocessing": dataclasses.asdict(how), "predictions": found}
        write_text(options.json, json.dumps(facts, indent=1) + "\n")
