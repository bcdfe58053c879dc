"""Image files: finding and opening them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError

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


FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Of Pillow's: what photographs come in. Others are out, as EPS, for which it would start Ghostscript."""

MOST_PIXELS = 89_478_485
"""From which on Pillow warns of an image that was made to fill the memory."""

LONGEST_SIDE = 256
"""Times the shorter one: an image that is narrower becomes enormous when its short side is fitted to a model's."""


class UnreadableImageError(ValueError):
    """Bytes that are no image, or a damaged one."""


def open_image(path: Path) -> Image.Image:
    """The image, decoded; as stored, whatever an EXIF orientation says (as timm).

    Raises:
        UnreadableImageError: no image, or a damaged one.
    """
    return decode_image(path, lambda: str(path))


def decode_image(file: Path | IO[bytes], name: Callable[[], str]) -> Image.Image:
    """As `open_image`, of a path or of bytes; `name` is asked for only if it cannot be read."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            _check_size(*image.size)
            image.load()
            return image
    except UnidentifiedImageError as error:
        raise UnreadableImageError(
            f"unreadable image {name()} (no image format known): replace or delete it"
        ) from error
    except Exception as error:  # damaged files raise almost anything: OSError, SyntaxError, ValueError ...
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UnreadableImageError(f"unreadable image {name()} ({reason}): replace or delete it") from error


def _check_size(width: int, height: int) -> None:
    if min(width, height) < 1:
        raise ValueError(f"{width}x{height} has no pixels")
    if width * height > MOST_PIXELS:
        raise ValueError(f"{width}x{height} are more than {MOST_PIXELS:,} pixels")
    if max(width, height) > LONGEST_SIDE * min(width, height):
        raise ValueError(f"{width}x{height} is narrower than 1:{LONGEST_SIDE}")
