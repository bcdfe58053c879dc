"""Finding and opening image files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError

from t2t_common.data.gray16 import to_8_bits
from t2t_common.data.readers.image_files import IMAGE_SUFFIXES, as_text, find_images_below
from t2t_config.text import first_line


def find_images(paths: Iterable[Path]) -> list[Path]:
    """Return the files among `paths`, whatever their names, and the images in the folders.

    Other files in a folder are listed in one line on stderr per folder.

    Raises:
        FileNotFoundError: If a path does not exist.
        ValueError: If a folder contains no images.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"no image or folder at {path}: check the path")
        if not path.is_dir():
            found.append(path)
            continue
        images, skipped = find_images_below(path)
        if not images:
            there = f", only {as_text(skipped)}" if skipped else ""
            raise ValueError(f"no images in {path}{there}: expected {', '.join(IMAGE_SUFFIXES)} files")
        if skipped:
            print(f"skipped in {path}: {as_text(skipped)}", file=sys.stderr)
        found += images
    return found


FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Supported Pillow formats, those of photographs. EPS, for example, is excluded: Pillow would start Ghostscript for
it."""

MOST_PIXELS = 89_478_485
"""Maximum number of pixels; above it Pillow warns of a decompression bomb."""

LONGEST_SIDE = 256
"""Maximum ratio of the longer to the shorter side: narrower images become enormous when the short side is resized to
the model's input size."""


class UnreadableImageError(ValueError):
    """Data that is not an image, or a damaged one."""


def open_image(path: Path) -> Image.Image:
    """Return the decoded image, converted to 8 bits (see gray16.py); as in timm, the EXIF orientation is ignored.

    Raises:
        UnreadableImageError: If the file is not an image, or is damaged.
    """
    return decode_image(path, lambda: str(path))


def decode_image(file: Path | IO[bytes], name: Callable[[], str]) -> Image.Image:
    """Same as `open_image`, for a path or binary file; `name` is called only if it cannot be read."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            _check_size(*image.size)
            image.load()
            return to_8_bits(image)
    except UnidentifiedImageError as error:
        raise UnreadableImageError(
            f"unreadable image {name()} (no image format known): replace or delete it"
        ) from error
    except Exception as error:  # damaged files raise almost any error: OSError, SyntaxError, ValueError ...
        reason = first_line(error)
        raise UnreadableImageError(f"unreadable image {name()} ({reason}): replace or delete it") from error


def _check_size(width: int, height: int) -> None:
    if min(width, height) < 1:
        raise ValueError(f"{width}x{height} has no pixels")
    if width * height > MOST_PIXELS:
        raise ValueError(f"{width}x{height} are more than {MOST_PIXELS:,} pixels")
    if max(width, height) > LONGEST_SIDE * min(width, height):
        raise ValueError(f"{width}x{height} is narrower than 1:{LONGEST_SIDE}")
