"""The command line of both `visualize` modules: options, files, and what is printed."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tyro.conf import Positional

from t2t_common.data.images import find_images, open_image
from t2t_common.data.preprocess import Preprocess, evaluation_image
from t2t_common.evaluation.predict_command import best_classes
from t2t_common.evaluation.weights_options import WeightsOptions
from t2t_common.io.files import ensure_writable, replace_file, write_text
from t2t_common.visualize.draw import Section, sheet
from t2t_common.visualize.inside import Inside, covered_size
from t2t_common.visualize.page import Picture, page
from t2t_common.visualize.sections import draw_image, draw_positions, left_out
from t2t_config.class_names import class_names
from t2t_config.text import escaped

PAGE_FILE = "index.html"
SAID = 3
"""Best classes that the page shows."""

Look = Callable[[np.ndarray], Inside]
"""An image (H, W, C) float32, prepared for the model -> what the model computes of it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisualizeOptions(WeightsOptions):
    """Options of the command line."""

    images: Positional[tuple[Path, ...]] = ()
    """Images, and folders whose images are taken; none for scikit-learn's photograph of a flower."""
    out: Path = Path("pictures")
    """Folder for the PNG files and index.html; made if need be."""
    classes: Path | None = None
    """Names of the classes, one per line or JSON; None takes the checkpoint's, or ImageNet's for 1000 classes."""

    def fresh(self) -> tuple[dict[str, Any], Preprocess]:
        """Arguments of `create_model`, and the preprocessing, where no checkpoint is named.

        Raises:
            ValueError: no model is named either.
        """
        if self.model is None:
            raise ValueError("nothing to look into: add --checkpoint PATH, or --model NAME for fresh weights")
        return self.choose({})


def visualize(options: VisualizeOptions, how: Preprocess, saved: Mapping[str, Any], model: Any, look: Look) -> None:
    """Draws what `look` finds in the images of `options`, and prints which files it wrote.

    Args:
        options: of the command line.
        how: the preprocessing.
        saved: the checkpoint's metadata, for the names of the classes.
        model: tells its name and sizes.
        look: of this model.

    Raises:
        FileNotFoundError, ValueError: no such image or file of names, no image, numbers that are not finite, or a
            folder that cannot be written to.
    """
    paths = find_images(options.images or (sample_image(),))
    names = class_names(model.num_classes, file=options.classes, saved=saved.get("class_names"))
    folder = ensure_writable(options.out)
    height, width = covered_size(model)
    pictures: list[Picture] = []
    for path, name in zip(paths, distinct_names(paths), strict=True):
        pixels = evaluation_image(open_image(path), how)
        inside = look(pixels)
        if not inside.is_finite:
            raise ValueError(f"{path} becomes numbers that are not finite in this model: check its weights")
        seen = restore(pixels, how).crop((0, 0, width, height))
        sections = draw_image(inside, seen)
        guesses = best_classes(inside.logits, names, SAID) if options.checkpoint and names else []
        says = [f"{guess.name}: {100 * guess.probability:.2f} %" for guess in guesses]
        pictures.append(Picture(path.name, seen, says, sections))
        title = f"{model.spec.name}, {path.name}" if path.name.isascii() else model.spec.name
        _write_sheets(folder, sections, title, f"{name}-")
    of_model = [draw_positions(inside)]
    _write_sheets(folder, of_model, model.spec.name)
    weights = str(options.checkpoint or "fresh, not trained: what attention shows means nothing")
    text = page(f"What {model.spec.name} sees", _facts(model, inside, weights), pictures, of_model)
    write_text(folder / PAGE_FILE, escaped(text, keep="\n"))
    print(folder / PAGE_FILE)


def sample_image() -> Path:
    """The photograph that is shown where no image is named.

    Raises:
        ValueError: scikit-learn, which it comes with, is not installed.
    """
    sklearn = find_spec("sklearn")
    if sklearn is None or sklearn.origin is None:
        raise ValueError(
            "no image is named, and the default one comes with scikit-learn: name one, or pip install scikit-learn"
        )
    return Path(sklearn.origin).parent / "datasets" / "images" / "flower.jpg"


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """A name for the files of each image: its own without the suffix, numbered where it is taken."""
    found: list[str] = []
    for path in paths:
        names = itertools.chain([path.stem], (f"{path.stem}-{number}" for number in itertools.count(2)))
        found.append(next(name for name in names if name not in found))
    return found


def restore(pixels_HxWxC: np.ndarray, how: Preprocess) -> Image.Image:
    """The image that the model's input shows: the inverse of the normalisation."""
    pixels = (pixels_HxWxC * np.asarray(how.std, np.float32) + np.asarray(how.mean, np.float32)) * 255
    whole = np.round(pixels).clip(0, 255).astype(np.uint8)
    return Image.fromarray(whole[..., 0] if how.in_chans == 1 else whole)


def _facts(model: Any, inside: Inside, weights: str) -> list[str]:
    (height, width), (rows, columns) = model.img_size, inside.grid
    heads = len(next(iter(inside.attention.values())))
    sizes = (
        f"Image of {height}×{width} pixels, {rows}×{columns} tokens, {len(inside.attention)} blocks of {heads} heads."
    )
    return [f"Weights: {weights}", sizes, left_out(inside)]


def _write_sheets(folder: Path, sections: Sequence[Section], title: str, prefix: str = "") -> None:
    for section in sections:
        path = folder / f"{prefix}{section.name}.png"
        with replace_file(path) as temporary:
            sheet(section, title).save(temporary, "PNG")
        print(path)
