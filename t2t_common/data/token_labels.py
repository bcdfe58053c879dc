"""Label maps for token labeling: read together with their images, and cropped, flipped and transformed in the same way.

Source: zihangJiang/TokenLabeling, tlt/data (arXiv 2104.10858). The processing of map and crop on the device is in
token_labeling.py of the two packages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from t2t_common.data.augment.randaugment import Layer, signed, strength_of
from t2t_common.data.augment.transforms import CropDraws, augmented, draw_crop, randaugment
from t2t_common.data.images import UnreadableImageError
from t2t_common.data.preprocess import Preprocess, convert, normalise
from t2t_common.data.readers.sources import FolderSource, Source
from t2t_common.data.readers.torch_tensor import read_tensor
from t2t_config import Recipe
from t2t_config.randaugment import LEVELS


class LabelMap(NamedTuple):
    """Top K classes of each cell of a grid over the whole image."""

    scores: np.ndarray
    """Scores, (K, H, W) float32, before any softmax."""
    classes: np.ndarray
    """Class indices, (K, H, W) int32."""


class TokenLabelSource:
    """Images of a folder, each with its label map: `CLASS/NAME.pt` in `folder` for the image `CLASS/NAME.jpg`.

    The maps are those of the authors' generate_label.py, or their download: one tensor (2, K, H, W) saved with
    torch.save, scores first, then classes. All have the same shape.
    """

    def __init__(self, images: Source, folder: str | Path, num_classes: int) -> None:
        """
        Args:
            images: Source whose folder tree the maps mirror.
            folder: Folder with the maps.
            num_classes: Number of classes of the head; larger class indices in a map are an error.

        Raises:
            FileNotFoundError: If the folder does not exist.
            ValueError: If the images are not a folder tree, or the first one has no map.
        """
        if not isinstance(images, FolderSource):
            raise ValueError("token_labels are maps beside image files: they need --data with train/CLASS/*.jpg")
        self._images, self._folder = images, Path(folder)
        self.num_classes, self.class_names = images.num_classes, images.class_names
        self.notes = images.notes
        if not self._folder.is_dir():
            raise FileNotFoundError(f"no folder of label maps {folder}: check --token-labels")
        self._limit = num_classes
        self._shape = self._read(0)[0].shape

    @property
    def images(self) -> FolderSource:
        """Images without their maps."""
        return self._images

    def map_path(self, index: int) -> Path:
        """Return the path of a label map."""
        return self._folder / self._images.relative_path(index).with_suffix(".pt")

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.labelled(index)[:2]

    def labelled(self, index: int) -> tuple[Image.Image, int, LabelMap]:
        """Return image, label and label map.

        Raises:
            UnreadableImageError: If the image or the map is damaged.
            ValueError: If there is no map, or it has another shape or classes out of range.
        """
        image, label = self._images[index]
        found, path = self._read(index)
        if found.shape != self._shape:
            raise ValueError(f"label map {path} is {found.shape}, the first one {self._shape}: make them all alike")
        return image, label, LabelMap(found[0].astype(np.float32), found[1].astype(np.int32))

    def _read(self, index: int) -> tuple[np.ndarray, Path]:
        path = self.map_path(index)
        try:
            found = read_tensor(path)
        except FileNotFoundError:
            raise ValueError(
                f"no label map {path} for {self._images.name(index)}: make it, or check --token-labels"
            ) from None
        except ValueError as error:
            raise UnreadableImageError(f"unreadable label map {path} ({error}): make it anew") from error
        if found.ndim != 4 or len(found) != 2:
            raise ValueError(f"label map {path} is {found.shape}: expected (2, K, H, W), scores and classes")
        if not np.isfinite(found).all():
            raise UnreadableImageError(f"unreadable label map {path} (not all of it is finite): make it anew")
        if found[1].min() < 0 or found[1].max() >= self._limit:
            raise ValueError(f"label map {path} names class {found[1].max():.0f}, the model has {self._limit}")
        return found, path


def with_token_labels(images: Source, recipe: Recipe) -> Source:
    """Return the images with the label maps that `recipe` (with num_classes set) trains on, or unchanged without maps.

    Raises:
        FileNotFoundError, ValueError: As raised by `TokenLabelSource`; ValueError also if the recipe needs maps and
            names none.
    """
    if not recipe.aux_head or recipe.num_classes is None:
        return images
    if recipe.token_labels is None:
        raise ValueError("this recipe needs label maps: add --token-labels DIR")
    return TokenLabelSource(images, recipe.token_labels, recipe.num_classes)


def labelled_example(
    image: Image.Image, label_map: LabelMap, preprocess: Preprocess, recipe: Recipe, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Augment a training image and its map together: image (H, W, C), label_scores, label_classes (K, h, w), crop (4,).

    As upstream, RandAugment comes before the crop: the map covers the whole image, so both undergo the same geometric
    operations. The random parameters are the same as for an image without a map.
    """
    image = convert(image, preprocess)
    draws = draw_crop(image.size, recipe, rng)
    width, height = image.size
    left, top, right, bottom = draws.box
    image = augmented(image, preprocess, recipe, draws).crop(draws.box).resize(preprocess.size[::-1], draws.resample)
    label_map = augmented_map(label_map, recipe, draws)
    return {
        "image": normalise(image, preprocess),
        "label_scores": label_map.scores,
        "label_classes": label_map.classes,
        "crop": np.array([top / height, bottom / height, left / width, right / width], np.float32),
    }


def augmented_map(label_map: LabelMap, recipe: Recipe, draws: CropDraws) -> LabelMap:
    """Apply the operations of `augmented` to the label map of an image."""
    if draws.flip:
        label_map = LabelMap(label_map.scores[..., ::-1], label_map.classes[..., ::-1])
    config = randaugment(recipe.auto_augment)
    for layer in draws.layers:
        label_map = moved(label_map, layer, LEVELS if config is None else config.limit)
    return LabelMap(np.ascontiguousarray(label_map.scores), np.ascontiguousarray(label_map.classes))


def moved(label_map: LabelMap, layer: Layer, limit: float = LEVELS) -> LabelMap:
    """Return the map after one RandAugment operation; only geometric operations change it.

    As upstream, nearest cells are used (`scipy.ndimage.affine_transform` of order 0), with a score of 0 outside the
    map, and units are cells: the rotation angle of a non-square image differs, and the centre of rotation is half a
    cell off.
    """
    if layer.name not in _MOVES:
        return label_map
    height, width = label_map.scores.shape[1:]
    (a, b, c), (d, e, f) = _MOVES[layer.name](signed(strength_of(layer, limit), layer), height, width)
    rows_HxW, columns_HxW = np.mgrid[:height, :width]
    rows_HxW, columns_HxW = a * rows_HxW + b * columns_HxW + c, d * rows_HxW + e * columns_HxW + f
    beyond_HxW = (rows_HxW < 0) | (rows_HxW > height - 1) | (columns_HxW < 0) | (columns_HxW > width - 1)
    row_HxW, column_HxW = (
        np.floor(np.clip(place, 0, size - 1) + 0.5).astype(int)
        for place, size in ((rows_HxW, height), (columns_HxW, width))
    )
    scores, classes = (array[:, row_HxW, column_HxW] for array in label_map)
    return LabelMap(np.where(beyond_HxW, np.float32(0), scores), classes)


Affine = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Source row and column of a cell, each as factors of its own row and column, and an offset."""


def _turn(strength: float, height: int, width: int) -> Affine:
    angle = math.radians(30 * strength)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    y, x = height / 2, width / 2
    return (cos, sin, y - cos * y - sin * x), (-sin, cos, x + sin * y - cos * x)


_MOVES: Mapping[str, Callable[[float, int, int], Affine]] = {
    "Rotate": _turn,
    "ShearX": lambda strength, height, width: ((1, 0, 0), (0.3 * strength, 1, 0)),
    "ShearY": lambda strength, height, width: ((1, 0.3 * strength, 0), (0, 1, 0)),
    "TranslateXRel": lambda strength, height, width: ((1, 0, 0), (0, 1, 0.45 * strength * width)),
    "TranslateYRel": lambda strength, height, width: ((1, 0, 0.45 * strength * height), (0, 1, 0)),
}
"""(signed strength in -1..1, rows, columns) -> map from output to input cells."""
