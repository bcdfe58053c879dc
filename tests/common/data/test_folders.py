"""Trees of class folders: which class is which number, and what is told of the rest."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Iterable
from pathlib import Path

import pytest
from PIL import Image

from t2t_common.data import data_identity, open_source
from t2t_common.data.fingerprint import data_changes
from t2t_common.data.folders import is_held_out, natural_key
from t2t_common.data.readers.formats import is_unsplit
from t2t_common.data.readers.sources import FolderSource, Source, notes_of
from t2t_config import Recipe
from tests.support.small_data import write_idx_folder


def tree(root: Path, *names: str | bytes) -> Path:
    """Images of one colour each; that of the n-th file is n."""
    for number, name in enumerate(names):
        path = root / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), number).save(path, "PNG")
    return root


def classes(names: Iterable[str], split: str = "train") -> list[str]:
    return [f"{split}/{name}/1.png" for name in names]


def labels(source: Source) -> dict[int, int]:
    """Colour of every image, and its label."""
    return {source[index][0].getpixel((0, 0)): source[index][1] for index in range(len(source))}  # type: ignore[misc]


def notes(source: Source) -> str:
    return "\n".join(notes_of(source))


# ---- order of the classes ----


def test_numbers_count_by_value(tmp_path: Path):
    """As timm's natural_key: ImageNetV2's folders 0 ... 999 are ImageNet's labels."""
    names = [str(number) for number in range(12)]
    source = open_source(tree(tmp_path, *classes(names)), "train")
    assert source.class_names == names
    assert labels(source) == {number: number for number in range(12)}
    assert "12 classes in natural order: 0 0, 1 1, 2 2, " in notes(source)
    assert sorted(["img10", "Img9", "a", "B", "img2"], key=natural_key) == ["a", "B", "img2", "Img9", "img10"]
    assert sorted(["01", "1", "\u00b2", "b", "B"], key=natural_key)[:2] == ["01", "1"]


def test_classes_txt_wins(tmp_path: Path):
    tree(tmp_path, *classes(["cat", "dog", "emu"]), *classes(["dog"], "val"))
    (tmp_path / "classes.txt").write_text("\ufeffemu\ncat\ndog\nyak\n", encoding="utf-8")
    train, val = open_source(tmp_path, "train"), open_source(tmp_path, "val")
    assert train.class_names == val.class_names == ["emu", "cat", "dog", "yak"]
    assert labels(train) == {0: 1, 1: 2, 2: 0}
    assert labels(val) == {3: 2}
    assert f"4 classes in the order of {tmp_path / 'classes.txt'}: 0 emu, 1 cat" in notes(train)
    assert "has no folder for 1 of the classes: yak" in notes(train)


def test_a_classes_txt_with_meanings(tmp_path: Path):
    tree(tmp_path, *classes(["n02", "n01"]))
    (tmp_path / "classes.txt").write_text("n02 big cat\nn01 small dog\n")
    assert open_source(tmp_path, "train").class_names == ["n02", "n01"]
    tree(tmp_path / "numbered", *classes(["1", "0"]))
    (tmp_path / "numbered" / "classes.txt").write_text("big cat\nsmall dog\n")
    source = open_source(tmp_path / "numbered", "train")
    assert (source.class_names, labels(source)) == (["big cat", "small dog"], {0: 1, 1: 0})


def test_a_classes_txt_of_other_classes_is_refused_with_both_lists(tmp_path: Path):
    tree(tmp_path, *classes(["cat", "dog"]))
    for text in ("cat\nemu\n", "cat\n", "cat\ndog\ncat\n"):
        (tmp_path / "classes.txt").write_text(text)
        with pytest.raises(ValueError, match=r"classes.txt does not name .*named: cat.*; there: cat, dog"):
            open_source(tmp_path, "train")


def test_the_order_of_a_run_that_was_begun_otherwise(tmp_path: Path):
    names = [str(number) for number in range(11)]
    source = open_source(tree(tmp_path, *classes(names)), "train")
    assert isinstance(source, FolderSource)
    old = source.reordered(sorted(names))
    assert labels(old)[10] == 2
    assert [old.name(index).split("/")[-2] for index in range(11)] == sorted(names)  # as the images were numbered, too
    assert labels(source) == {number: number for number in range(11)}
    assert labels(pickle.loads(pickle.dumps(old))) == labels(old)


# ---- which files ----


def test_what_is_passed_over_is_told(tmp_path: Path):
    tree(tmp_path, "train/cat/1.webp", "train/dog/2.bmp", "train/loose.png", "train/cat/._1.webp")
    (tmp_path / "train" / "emu").mkdir()
    (tmp_path / "train" / "dog" / "x.heic").write_bytes(b"")
    (tmp_path / "train" / "__MACOSX").mkdir()
    source = open_source(tmp_path, "train")
    assert len(source) == 2
    assert source.class_names == ["cat", "dog", "emu"]
    said = notes(source)
    assert "no images in 1 class folders of " in said
    assert ": emu" in said
    assert "skipped 1 images in " in said
    assert f"skipped in the class folders of {tmp_path / 'train'}: 1 .heic, 1 system files" in said


def test_class_folders_may_be_links(tmp_path: Path):
    tree(tmp_path, "elsewhere/cat/1.png", "data/train/dog/2.png")
    (tmp_path / "data" / "train" / "cat").symlink_to(tmp_path / "elsewhere" / "cat")
    (tmp_path / "elsewhere" / "cat" / "round").symlink_to(tmp_path / "data" / "train")
    source = open_source(tmp_path / "data", "train")
    assert source.class_names == ["cat", "dog"]
    assert labels(source)[0] == 0


def test_no_images_says_what_is_there(tmp_path: Path):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    (tmp_path / "train" / "cat" / "1.heic").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no images in .*train, only 1 .heic: expected folders of .jpg"):
        open_source(tmp_path, "train")


# ---- which folders ----


@pytest.mark.parametrize("name", ["val", "validation", "valid", "test", "Val", "TEST"])
def test_names_of_splits(tmp_path: Path, name: str):
    tree(tmp_path, *classes(["cat", "dog"]), *classes(["dog"], name))
    val = open_source(tmp_path, "val")
    assert labels(val) == {2: 1}
    assert (f"using {tmp_path / name} as the validation images" in notes(val)) == (name.lower() != "val")
    assert len(open_source(tmp_path, "train")) == 2


@pytest.mark.parametrize("above", ["imagenette2", "a/b"])
def test_a_root_one_level_too_high(tmp_path: Path, above: str):
    tree(tmp_path / above, *classes(["cat", "dog"]), *classes(["dog"], "val"))
    (tmp_path / "__MACOSX").mkdir()
    for split, count in (("train", 2), ("val", 1)):
        source = open_source(tmp_path, split)  # type: ignore[arg-type]
        assert (len(source), source.class_names) == (count, ["cat", "dog"])
        assert f"using {tmp_path / above} as the data" in notes(source)


def test_class_folders_one_level_deeper(tmp_path: Path):
    """One class whose images are all in folders is none."""
    tree(tmp_path, "imagenetv2/0/1.png", "imagenetv2/1/1.png")
    source = open_source(tmp_path, "val")
    assert (len(source), source.class_names) == (2, ["0", "1"])
    assert "as the data: it is the only folder" in notes(source)


def test_other_kinds_of_data_one_level_too_high(tmp_path: Path):
    write_idx_folder(tmp_path / "MNIST" / "raw")  # torchvision's layout
    assert len(open_source(tmp_path, "val")) == len(open_source(tmp_path / "MNIST", "val")) == 20


def test_classes_that_are_called_like_a_split(tmp_path: Path):
    source = open_source(tree(tmp_path, "bus/1.png", "test/1.png", "train/1.png"), "val")
    assert source.class_names == ["bus", "test", "train"]


def test_class_folders_where_splits_should_be(tmp_path: Path):
    tree(tmp_path, "cat/1.png", "dog/1.png")
    with pytest.raises(ValueError, match=r"no folder .*train.*holds class folders itself, cat, dog: move them"):
        open_source(tmp_path, "train")


def test_a_folder_beside_an_idx_file(tmp_path: Path):
    """Kaggle's archive of MNIST has both."""
    write_idx_folder(tmp_path)
    for path in list(tmp_path.iterdir()):
        (tmp_path / f"{path.name}.d").mkdir()
        path.rename(tmp_path / f"{path.name}.d" / path.name)
        (tmp_path / f"{path.name}.d").rename(path)  # a folder with the file of its name
    assert len(open_source(tmp_path, "train")) == 64
    for path in list(tmp_path.iterdir()):
        (path / path.name).rename(tmp_path / path.name.replace("-idx", ".idx"))
    assert len(open_source(tmp_path, "train")) == 64


# ---- names that are no text ----


def test_names_that_cannot_be_printed(tmp_path: Path):
    names = [b"caf\xe9", "red\x1b[31m\x07", "two\nlines", "<script>"]
    source = open_source(tree(tmp_path, *(b"train/" + os.fsencode(name) + b"/1.png" for name in names)), "train")
    shown = ["<script>", "caf\\udce9", "red\\x1b[31m\\x07", "two\\nlines"]
    assert source.class_names == shown
    assert labels(source) == {0: 1, 1: 2, 2: 3, 3: 0}
    assert all(name.isprintable() for name in notes_of(source))
    (tmp_path / "classes.txt").write_text("\n".join(reversed(shown)))
    assert labels(open_source(tmp_path, "train")) == {0: 2, 1: 1, 2: 0, 3: 3}


def test_two_names_that_are_shown_alike(tmp_path: Path):
    tree(tmp_path, "train/a\nb/1.png", "train/a\\nb/1.png")
    with pytest.raises(ValueError, match=r"two class folders that are shown as a\\nb: rename one"):
        open_source(tmp_path, "train")


# ---- one folder, split by --val-fraction ----


def names_of(source: Source) -> set[str]:
    assert isinstance(source, FolderSource)
    return {source.relative_path(index).as_posix() for index in range(len(source))}


def test_the_rule_is_the_one_that_is_documented():
    """`printf cat/5.png | sha256sum` begins with 2da9: 0.178 of all values are lower."""
    assert is_held_out("cat/5.png", 0.1784)
    assert not is_held_out("cat/5.png", 0.1783)
    for name in ("cat/1.png", "cat/3.png", "d\u00f6g/x/2.jpg"):
        share = int(hashlib.sha256(name.encode()).hexdigest(), 16) / 2**256
        for fraction in (share - 1e-6, share + 1e-6):
            assert is_held_out(name, fraction) == (fraction > share)
    assert is_held_out("do\u0308g.png", 0.5) == is_held_out("d\u00f6g.png", 0.5)  # as macOS and as others store it


def test_one_folder_is_split_and_new_images_move_no_other(tmp_path: Path):
    names = [f"{name}/{number}.png" for name in ("cat", "dog") for number in range(200)]
    tree(tmp_path, *names)
    train, val = (open_source(tmp_path, split, val_fraction=0.2) for split in ("train", "val"))
    assert names_of(train) | names_of(val) == set(names)
    assert not names_of(train) & names_of(val)
    assert 50 < len(val) < 110  # 80 are expected; the standard deviation is 8
    assert (train.num_classes, val.class_names) == (2, ["cat", "dog"])
    assert labels(val).keys() < set(range(400))
    assert all(label == colour // 200 for colour, label in labels(val).items() if colour < 256)
    assert f"{len(val)} of 400 images are for validation, by their names (--val-fraction 0.2)" in notes(val)
    tree(tmp_path, *[f"{name}/new {number}.png" for name in ("ant", "cat") for number in range(50)])
    (tmp_path / "dog" / "7.png").unlink()
    for before, split in ((train, "train"), (val, "val")):
        now = names_of(open_source(tmp_path, split, val_fraction=0.2))  # type: ignore[arg-type]
        assert {name for name in now if "new" not in name} == names_of(before) - {"dog/7.png"}
    larger = open_source(tmp_path, "val", val_fraction=0.4)
    assert names_of(open_source(tmp_path, "val", val_fraction=0.2)) < names_of(larger)


def test_the_split_is_part_of_the_identity_of_the_data(tmp_path: Path):
    tree(tmp_path, *[f"{name}/{number}.png" for name in ("cat", "dog") for number in range(20)])
    identities = [
        data_identity(*(open_source(tmp_path, split, val_fraction=fraction) for split in ("train", "val")))  # type: ignore[arg-type]
        for fraction in (0.3, 0.3, 0.6)
    ]
    assert identities[0] == identities[1]
    assert "training images: " in data_changes(identities[0], identities[2])


@pytest.mark.parametrize("place", ["", "photos/", "train/", "photos/train/"])
def test_where_the_class_folders_may_be(tmp_path: Path, place: str):
    tree(tmp_path, *[f"{place}{name}/{number}.png" for name in ("cat", "dog") for number in range(20)])
    train, val = (open_source(tmp_path, split, val_fraction=0.5) for split in ("train", "val"))
    assert (len(train) + len(val), val.class_names) == (40, ["cat", "dog"])
    assert is_unsplit(tmp_path)
    assert "taking" not in notes(val) or place.startswith("photos")


def test_classes_that_one_side_lacks_are_named(tmp_path: Path):
    tree(tmp_path, "cat/1.png", "cat/5.png", "dog/1.png")
    assert [is_held_out(name, 0.3) for name in ("cat/1.png", "cat/5.png", "dog/1.png")] == [False, True, False]
    val = open_source(tmp_path, "val", val_fraction=0.3)
    assert (len(val), val.num_classes) == (1, 2)
    assert "no validation images of 1 classes: dog" in notes(val)


def test_splits_that_make_no_sense(tmp_path: Path):
    tree(tmp_path / "split", "train/cat/1.png", "validation/cat/1.png")
    with pytest.raises(ValueError, match=r"validation are validation images already: leave out --val-fraction"):
        open_source(tmp_path / "split", "train", val_fraction=0.2)
    assert not is_unsplit(tmp_path / "split")
    for data in (write_idx_folder(tmp_path / "idx"), "digits"):
        with pytest.raises(ValueError, match=r"splits a folder of class folders, and .*(idx|digits) is not one"):
            open_source(data, "val", val_fraction=0.2)
        assert not is_unsplit(data)
    tree(tmp_path / "one", "cat/1.png")
    with pytest.raises(ValueError, match=r"--val-fraction 0.01 leaves no validation images of 1: choose another"):
        open_source(tmp_path / "one", "val", val_fraction=0.01)
    for fraction in (0, 1, -0.1, float("nan"), "0.2"):
        with pytest.raises(ValueError, match=r"val_fraction .* is not a fraction above 0 and below 1"):
            Recipe("t2t_vit_micro", val_fraction=fraction)  # type: ignore[arg-type]
