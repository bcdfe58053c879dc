"""Finding and opening images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2t_common.images import find_images, open_image


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path)
    return path


def test_files_and_folders(tmp_path: Path):
    b, a, odd = picture(tmp_path / "b.JPG"), picture(tmp_path / "a" / "x.png"), picture(tmp_path / "photo.bmp")
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
