"""Search for image files below a folder, as in torchvision and timm, with counts of skipped files."""

from __future__ import annotations

import collections
import os
from pathlib import Path
from typing import NamedTuple

from t2t_config.text import escaped

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
"""Suffixes of the files that are treated as images; case is ignored."""

SYSTEM_FILES = frozenset((".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", ".nomedia", ".picasa.ini"))
SYSTEM_FOLDERS = frozenset(
    (*("__macosx", "@eadir", "#recycle", "@recycle", "$recycle.bin"), "system volume information", "lost+found")
)
"""Folders, in lower case, that operating systems, file managers and network storage create. `._*` files of macOS and
hidden folders such as `.ipynb_checkpoints` are skipped as well."""

SYSTEM, LINKS, BROKEN, NO_SUFFIX = "system files", "links that lead back", "broken links", "without a suffix"
LONGEST_SUFFIX = 20
"""Maximum length of a suffix in the counts of skipped files."""


class Found(NamedTuple):
    """Image files in order, and counts of the other files by suffix (".txt") or by the reason for skipping them."""

    files: list[Path]
    skipped: collections.Counter[str]


def is_system_file(name: str) -> bool:
    """Return whether a file of this name was created by the system, not by the user."""
    return name.startswith("._") or name.lower() in SYSTEM_FILES


def is_system_folder(name: str) -> bool:
    """Return whether a folder of this name was created by the system, not by the user."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


def folders_in(folder: Path) -> list[str]:
    """Return the names of the folders in `folder`, in any order, including links, without system folders."""
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if entry.is_dir() and not is_system_folder(entry.name)]


def find_images_below(folder: Path) -> Found:
    """Find all images in and below `folder`, sorted by the components of their paths.

    Links are followed after everything else, so that no image counts twice: a link to a parent folder or to a folder
    that was visited before is skipped.
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
    """Return the suffix of a file in lower case, or the reason for skipping it."""
    if is_system_file(entry.name):
        return SYSTEM
    if not entry.is_file():
        return BROKEN if entry.is_symlink() else NO_SUFFIX
    return escaped(os.path.splitext(entry.name)[1].lower()[:LONGEST_SUFFIX]) or NO_SUFFIX


def as_text(skipped: collections.Counter[str], most: int = 8) -> str:
    """Describe `skipped` in words, the most frequent first: "3 .heic, 1 .txt"."""
    kinds = sorted(skipped.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(count for _, count in kinds[most:])
    return ", ".join([f"{count} {kind}" for kind, count in kinds[:most]] + ([f"{rest} others"] if rest else []))


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino
