"""Command line of both `visualize` modules: options, files and printed output."""

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
from t2t_common.io import cli
from t2t_common.io.files import ensure_writable, replace_file, write_text
from t2t_common.visualize.draw import Section, sheet
from t2t_common.visualize.inside import Inside, covered_size
from t2t_common.visualize.page import Picture, page
from t2t_common.visualize.sections import draw_image, draw_positions, left_out
from t2t_config.class_names import class_names

PAGE_FILE = "index.html"
SAID = 3
"""Number of top classes shown on the page."""

Look = Callable[[np.ndarray], Inside]
"""Function from an image (H, W, C) float32, prepared for the model, to the intermediate results of the model."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisualizeOptions(WeightsOptions):
    """Options of the command line."""

    images: Positional[tuple[Path, ...]] = ()
    """Images, and folders of images; without any, scikit-learn's photograph of a flower."""
    out: Path = Path("pictures")
    """Folder for the PNG files and index.html; created if it does not exist."""
    classes: Path | None = None
    """Class names, one per line or JSON; None uses the checkpoint's, or ImageNet's for 1000 classes."""

    def fresh(self) -> tuple[dict[str, Any], Preprocess]:
        """Return the arguments of `create_model`, and the preprocessing, if no checkpoint is given.

        Raises:
            ValueError: If no model is given either.
        """
        if self.model is None:
            raise ValueError("nothing to look into: add --checkpoint PATH, or --model NAME for fresh weights")
        return self.choose({})


def visualize(options: VisualizeOptions, how: Preprocess, saved: Mapping[str, Any], model: Any, look: Look) -> None:
    """Visualise the images of `options` as computed by `look`, and print the names of the files written.

    Args:
        options: Options of the command line.
        how: Preprocessing of the model.
        saved: Metadata of the checkpoint, for the class names.
        model: Model, for its name and sizes.
        look: Function that runs this model.

    Raises:
        FileNotFoundError, ValueError: If an image or the file of names does not exist, there are no images, values are
            not finite, or the folder is not writable.
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
    write_text(folder / PAGE_FILE, text)
    print(folder / PAGE_FILE)


def visualize_command(
    args: Sequence[str],
    package: str,
    doc: str,
    *,
    load: Callable[[VisualizeOptions], tuple[Any, Preprocess, dict[str, Any]]],
    create: Callable[..., Any],
    make_extractor: Callable[[Any], Look],
) -> int:
    """Run the command of `package`, described by `doc`, and return its exit code.

    Args:
        load: Function that loads the checkpoint of the options: model, preprocessing and metadata.
        create: Function that creates a model in evaluation mode with random weights.
        make_extractor: Function from a model to the function that runs it.
    """
    description = doc.partition("\n\nTwin")[0]
    options = cli.parse(VisualizeOptions, args, prog=f"python -m {package}.visualize", description=description)
    if options.checkpoint is not None:
        model, how, saved = load(options)
    else:
        arguments, how = options.fresh()
        model, saved = create(**arguments), {}
    visualize(options, how, saved, model, make_extractor(model))
    return cli.OK


def sample_image() -> Path:
    """Return the photograph that is shown if no image is given.

    Raises:
        ValueError: If scikit-learn, which contains it, is not installed.
    """
    sklearn = find_spec("sklearn")
    if sklearn is None or sklearn.origin is None:
        raise ValueError(
            "no image is named, and the default one comes with scikit-learn: name one, or pip install scikit-learn"
        )
    return Path(sklearn.origin).parent / "datasets" / "images" / "flower.jpg"


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return a base name for the files of each image: its own name without the suffix, numbered if already used."""
    found: list[str] = []
    for path in paths:
        names = itertools.chain([path.stem], (f"{path.stem}-{number}" for number in itertools.count(2)))
        found.append(next(name for name in names if name not in found))
    return found


def restore(pixels_HxWxC: np.ndarray, how: Preprocess) -> Image.Image:
    """Convert the model's input back to an image: the inverse of the normalisation."""
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
