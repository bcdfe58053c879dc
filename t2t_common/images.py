"""Image files: finding and opening them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from PIL import Image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
"""Of the files in a folder that are taken for images."""


def image_files(folder: Path) -> list[Path]:
    """All images in `folder` and below, in order of their names."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())


def find_images(paths: Iterable[Path]) -> list[Path]:
    """The files among `paths`, whatever their names, and the images of the folders.

    Raises:
        FileNotFoundError: nothing at a path.
        ValueError: a folder without images.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"no image or folder at {path}: check the path")
        images = image_files(path) if path.is_dir() else [path]
        if not images:
            raise ValueError(f"no images in {path}: expected {', '.join(IMAGE_SUFFIXES)} files")
        found += images
    return found


def open_image(path: Path) -> Image.Image:
    """The image, decoded; as stored, whatever an EXIF orientation says (as timm).

    Raises:
        ValueError: no image, or a damaged one.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except Exception as error:  # damaged files raise almost anything: OSError, SyntaxError, ValueError ...
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"unreadable image {path} ({reason}): replace or delete it") from error
