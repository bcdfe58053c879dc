"""Which files below a folder are images, and what is told of the others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from t2t_common.data.readers.image_files import as_text, find_images_below, folders_in


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


@pytest.mark.parametrize("name", ["a.JPG", "a.jpeg", "a.png", "a.webp", "a.bmp", "a.tif", "a.tiff", "a.gif", "a.ppm"])
def test_suffixes(tmp_path: Path, name: str):
    assert find_images_below(tmp_path) == ([], {})
    image = touch(tmp_path / "below" / name)
    assert find_images_below(tmp_path) == ([image], {})


def test_what_systems_leave_is_no_image(tmp_path: Path):
    image = touch(tmp_path / "cat.jpg")
    for name in ("._cat.jpg", "Thumbs.db", ".DS_Store", "desktop.ini"):
        touch(tmp_path / name)
    for name in (".ipynb_checkpoints", "__MACOSX", "@eaDir", "lost+found", ".cache"):
        touch(tmp_path / name / "cat.jpg")
    assert find_images_below(tmp_path) == ([image], {"system files": 9})
    assert folders_in(tmp_path) == []


def test_what_is_passed_over_is_counted_by_suffix(tmp_path: Path):
    for name in ("1.heic", "2.HEIC", "x/3.heic", "notes.txt", "README", "odd.\x1b[31m"):
        touch(tmp_path / name)
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    files, skipped = find_images_below(tmp_path)
    assert files == []
    assert as_text(skipped) == "3 .heic, 1 .\\x1b[31m, 1 .txt, 1 broken links, 1 without a suffix"


def test_links_are_followed_and_cycles_end(tmp_path: Path):
    data = tmp_path / "data"
    own = touch(data / "cat" / "1.jpg")
    touch(tmp_path / "elsewhere" / "more" / "2.jpg")
    touch(data / "dog" / "3.jpg")
    for name, target in (
        ("more", tmp_path / "elsewhere"),
        ("more-again", tmp_path / "elsewhere" / "more"),
        ("self", data / "cat"),
        ("above", data),
        ("a-real-one-first", data / "cat" / "z"),
    ):
        (data / "cat" / name).symlink_to(target)
    last = touch(data / "cat" / "z" / "4.jpg")
    (data / "cat" / "z" / "back").symlink_to(data / "cat")
    (data / "cat" / "5.jpg").symlink_to(own)
    files, skipped = find_images_below(data / "cat")
    assert files == [own, data / "cat" / "5.jpg", data / "cat" / "more" / "more" / "2.jpg", last]
    assert skipped == {"links that lead back": 5}
    assert folders_in(data / "cat") != []


def test_many_links_to_one_folder_are_walked_once(tmp_path: Path):
    """Else ten folders with two links to the next one each would be a thousand."""
    for depth in range(20):
        folder = tmp_path / f"{depth:02}"
        folder.mkdir()
        for name in ("a", "b"):
            (folder / name).symlink_to(tmp_path / f"{depth + 1:02}")
    touch(tmp_path / "20" / "1.jpg")
    files, _ = find_images_below(tmp_path / "00")
    assert len(files) == 1


def test_the_order_is_that_of_paths(tmp_path: Path):
    """Runs that began before links were followed go on with the images in their order."""
    for name in ("b.jpg", "a/1.jpg", "a.jpg", "a-b/1.jpg", "a b/1.jpg", os.fsdecode(b"\xff.jpg"), "\u00e9.jpg"):
        touch(tmp_path / name)
    files, _ = find_images_below(tmp_path)
    assert files == sorted(tmp_path.rglob("*.jpg"))
