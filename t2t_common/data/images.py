"""Image files: finding and opening them."""

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
    """The files among `paths`, whatever their names, and the images of the folders; what else is there, in one line on
    stderr for each folder.

    Raises:
        FileNotFoundError: nothing at a path.
        ValueError: a folder without images.
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
            print(f"passed over in {path}: {as_text(skipped)}", file=sys.stderr)
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
    """The image, decoded; as stored, whatever an EXIF orientation says (as timm), but with 8 bits (see grays.py).

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
            return to_8_bits(image)
    except UnidentifiedImageError as error:
        raise UnreadableImageError(
            f"unreadable image {name()} (no image format known): replace or delete it"
        ) from error
    except Exception as error:  # damaged files raise almost anything: OSError, SyntaxError, ValueError ...
        reason = first_line(error)
        raise UnreadableImageError(f"unreadable image {name()} ({reason}): replace or delete it") from error


def _check_size(width: int, height: int) -> None:
    if min(width, height) < 1:
        raise ValueError(f"{width}x{height} has no pixels")
    if width * height > MOST_PIXELS:
        raise ValueError(f"{width}x{height} are more than {MOST_PIXELS:,} pixels")
    if max(width, height) > LONGEST_SIDE * min(width, height):
        raise ValueError(f"{width}x{height} is narrower than 1:{LONGEST_SIDE}")
