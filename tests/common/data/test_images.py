"""Finding and opening images."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2t_common.data.images import find_images, open_image


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path)
    return path


def test_files_and_folders(tmp_path: Path):
    b, a, odd = (
        picture(tmp_path / "b.JPG"),
        picture(tmp_path / "a" / "x.png"),
        picture(tmp_path / "x.bmp").rename(tmp_path / "photo.dat"),
    )
    (tmp_path / "notes.txt").write_text("no image")
    assert find_images([tmp_path]) == [a, b]
    assert find_images([odd, tmp_path / "a", b]) == [odd, a, b]
    assert open_image(odd).size == (4, 4)


def test_nothing_there(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no image or folder at .*none.jpg"):
        find_images([tmp_path / "none.jpg"])
    with pytest.raises(ValueError, match=r"no images in .*: expected .jpg"):
        find_images([tmp_path])


def test_no_image(tmp_path: Path):
    whole = picture(tmp_path / "whole.png").read_bytes()
    for content in (b"", b"no image", whole[:-30]):
        (tmp_path / "broken.png").write_bytes(content)
        with pytest.raises(ValueError, match=r"unreadable image .*broken.png .*: replace or delete it"):
            open_image(tmp_path / "broken.png")


def test_what_an_image_file_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Photographs, by their bytes and not their name; never PostScript, for which Pillow starts a program."""
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"):
        Image.new("RGB", (4, 4)).save(tmp_path / "photo.jpg", kind)
        assert open_image(tmp_path / "photo.jpg").size == (4, 4)
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kwargs: pytest.fail("it was run"))
    Image.new("RGB", (4, 4)).save(tmp_path / "photo.jpg", "EPS")
    with pytest.raises(ValueError, match=r"unreadable image .*photo.jpg \(no image format known\)"):
        open_image(tmp_path / "photo.jpg")


@pytest.mark.parametrize(("width", "height"), [(0, 0), (0, 5), (5, 0)])
def test_an_image_without_pixels(tmp_path: Path, width: int, height: int):
    """A GIF may say so, and Pillow takes it."""
    path = tmp_path / "photo.gif"
    Image.new("L", (5, 5)).save(path)
    content = bytearray(path.read_bytes())
    frame = content.index(b",", 13)  # the header of the frame, which has sizes of its own
    for place in (6, frame + 5):
        content[place : place + 4] = struct.pack("<2H", width, height)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"unreadable image .*photo.gif \(.*"):
        open_image(path)


@pytest.mark.parametrize(
    ("size", "says"),
    [((1, 300), "1x300 is narrower than 1:256"), ((300, 1), "narrower"), ((10_000, 9000), "more than 89,478,485")],
)
@pytest.mark.filterwarnings("ignore:Image size")
def test_an_image_that_would_fill_the_memory(tmp_path: Path, size: tuple[int, int], says: str):
    """As it is, or when its short side is fitted to a model's."""
    Image.new("1", size).save(tmp_path / "photo.png")
    with pytest.raises(ValueError, match=rf"unreadable image .*photo.png \(.*{says}"):
        open_image(tmp_path / "photo.png")
