"""The image files below a folder, as torchvision and timm find them, and an account of what is passed over."""

from __future__ import annotations

import collections
import os
from pathlib import Path
from typing import NamedTuple

from t2t_config.text import escaped

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
"""Of the files in a folder that are taken for images; whatever their case."""

SYSTEM_FILES = frozenset((".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", ".nomedia", ".picasa.ini"))
SYSTEM_FOLDERS = frozenset(
    (*("__macosx", "@eadir", "#recycle", "@recycle", "$recycle.bin"), "system volume information", "lost+found")
)
"""What systems, file managers and network storage leave in folders of images, in lower case. Besides them `._*` of
macOS, and hidden folders, such as `.ipynb_checkpoints`."""

SYSTEM, LINKS, BROKEN, NO_SUFFIX = "system files", "links that lead back", "broken links", "without a suffix"
LONGEST_SUFFIX = 20
"""What is passed over for another reason than its suffix, and how much of a suffix is told."""


class Found(NamedTuple):
    """Image files in order, and how many others there are: by suffix (".txt"), or why they are passed over."""

    files: list[Path]
    skipped: collections.Counter[str]


def is_system_file(name: str) -> bool:
    """Whether a file called so is none of the user's."""
    return name.startswith("._") or name.lower() in SYSTEM_FILES


def is_system_folder(name: str) -> bool:
    """Whether a folder called so is none of the user's."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


def folders_in(folder: Path) -> list[str]:
    """Names of the folders in `folder`, links to folders among them; those of systems left out, in no order."""
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if entry.is_dir() and not is_system_folder(entry.name)]


def find_images_below(folder: Path) -> Found:
    """All images in `folder` and below, in the order of the parts of their paths.

    Links are followed, after everything else, so that no image counts twice: a link that leads back to a folder above,
    or to one that was visited before, is passed over.
    """
    found: list[str] = []
    skipped: collections.Counter[str] = collections.Counter()
    root = folder.resolve()
    visited = {_identity(str(above)) for above in root.parents}
    folders, links = [str(folder)], collections.deque[str]()
    while folders or links:
        path = folders.pop() if folders else links.popleft()
        identity = _identity(path)
        if identity in visited:
            skipped[LINKS] += 1
            continue
        visited.add(identity)
        with os.scandir(path) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if not entry.is_dir():
                    kind = _kind(entry)
                    if kind in IMAGE_SUFFIXES:
                        found.append(entry.path)
                    else:
                        skipped[kind] += 1
                elif is_system_folder(entry.name):
                    skipped[SYSTEM] += 1
                else:
                    (links if entry.is_symlink() else folders).append(entry.path)
    found.sort(key=lambda path: path.split(os.sep))
    return Found([Path(path) for path in found], skipped)


def _kind(entry: os.DirEntry[str]) -> str:
    """The suffix of a file in lower case, or why it is none of the user's."""
    if is_system_file(entry.name):
        return SYSTEM
    if not entry.is_file():
        return BROKEN if entry.is_symlink() else NO_SUFFIX
    return escaped(os.path.splitext(entry.name)[1].lower()[:LONGEST_SUFFIX]) or NO_SUFFIX


def as_text(skipped: collections.Counter[str], most: int = 8) -> str:
    """`skipped` in words, the most frequent first: "3 .heic, 1 .txt"."""
    kinds = sorted(skipped.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(count for _, count in kinds[most:])
    return ", ".join([f"{count} {kind}" for kind, count in kinds[:most]] + ([f"{rest} others"] if rest else []))


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino
