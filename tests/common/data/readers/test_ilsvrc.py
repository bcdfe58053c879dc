"""The archives of ILSVRC2012, as image-net.org distributes them, on a few images of three classes."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

import t2t_jax.data.__main__ as data_command
from t2t_common.data import open_source
from t2t_common.data.fingerprint import identify
from t2t_common.data.readers import idx_cifar
from t2t_common.data.readers.ilsvrc import DEVKIT, META, TRUTH
from t2t_common.data.readers.sources import notes_of
from t2t_common.io import cli
from t2t_config.class_names import imagenet_classes
from tests.common.data.readers.test_shards import jpeg, read_all, write_tar
from tests.common.io.test_mat_file import saved

WNIDS = list(imagenet_classes())
TRAINED = {WNIDS[2]: 3, WNIDS[0]: 2, WNIDS[999]: 1}
"""Images of each class, in the order of the archive."""
IDS = {1: WNIDS[999], 2: WNIDS[2], 3: WNIDS[0]}
"""The devkit's numbers of the classes, which are in another order."""
TRUE_IDS = [3, 1, 2, 2, 3]
VAL = {f"ILSVRC2012_val_{number:08d}.JPEG": jpeg(100 + number) for number in range(1, 6)}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2T_CACHE", str(tmp_path / "cache"))


def inner_tar(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def train_images() -> dict[str, dict[str, bytes]]:
    return {
        wnid: {f"{wnid}_{number}.JPEG": jpeg(10 * place + number) for number in range(count)}
        for place, (wnid, count) in enumerate(TRAINED.items())
    }


def devkit() -> dict[str, bytes]:
    rows = [(number, wnid, imagenet_classes()[wnid]) for number, wnid in IDS.items()]
    truth = "".join(f"{number}\n" for number in TRUE_IDS).encode()
    return {f"{DEVKIT}/readme.txt": b"", f"{DEVKIT}/{META}": saved(rows), f"{DEVKIT}/{TRUTH}": truth}


def write_archives(root: Path) -> Path:
    write_tar(
        root / "ILSVRC2012_img_train.tar",
        {f"{wnid}.tar": inner_tar(images) for wnid, images in train_images().items()},
    )
    write_tar(root / "ILSVRC2012_img_val.tar", VAL)
    (root / f"{DEVKIT}.tar.gz").write_bytes(gzip.compress(inner_tar(devkit())))
    return root


def write_tree(root: Path) -> Path:
    """The same images in the layout of ImageFolder."""
    labelled = {f"val/{IDS[number]}/{name}": VAL[name] for number, name in zip(TRUE_IDS, VAL, strict=True)}
    for wnid, images in train_images().items():
        labelled |= {f"train/{wnid}/{name}": content for name, content in images.items()}
    for name, content in labelled.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    (root / "classes.txt").write_text("\n".join(WNIDS))
    return root


def unpack_val(root: Path, folder: str = "val") -> Path:
    """The validation images and the devkit, unpacked."""
    (root / "ILSVRC2012_img_val.tar").unlink()
    (root / f"{DEVKIT}.tar.gz").unlink()
    for name, content in {**{f"{folder}/{name}": data for name, data in VAL.items()}, **devkit()}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def test_the_archives_have_the_images_of_the_tree(tmp_path: Path):
    root, tree = write_archives(tmp_path / "archives"), write_tree(tmp_path / "tree")
    for split in ("train", "val"):
        read, made_of = open_source(root, split), open_source(tree, split)
        assert sorted(read_all(read)) == sorted(read_all(made_of))
        assert read.class_names == made_of.class_names == WNIDS
        image, label = read[1]
        expected = next(made_of[i] for i in range(len(made_of)) if made_of.read(i) == read.read(1))  # type: ignore[attr-defined]
        np.testing.assert_array_equal(np.asarray(image), np.asarray(expected[0]))
        assert label == expected[1]
    train = open_source(root, "train")
    assert train.name(3).endswith(f"ILSVRC2012_img_train.tar/{WNIDS[0]}.tar/{WNIDS[0]}_0.JPEG")  # type: ignore[attr-defined]
    assert "has no images of 997 classes" in "".join(notes_of(train))
    assert [label for _, label in read_all(open_source(root, "val"))] == [0, 999, 2, 2, 0]  # type: ignore[arg-type]


@pytest.mark.parametrize("folder", ["val", "ILSVRC2012_img_val", "validation", "."])
def test_validation_images_that_were_unpacked(tmp_path: Path, folder: str):
    write_archives(tmp_path / "archives")
    expected = read_all(open_source(tmp_path / "archives", "val"))  # type: ignore[arg-type]
    root = unpack_val(tmp_path / "archives", folder)
    source = open_source(root, "val")
    assert read_all(source) == expected  # type: ignore[arg-type]
    if folder == "val":
        assert read_all(open_source(root / folder, "val")) == expected  # type: ignore[arg-type]
    assert len(open_source(root, "train")) == 6
    before = identify(source)
    (root / DEVKIT / TRUTH).write_text("3\n1\n2\n2\n1\n")
    assert identify(open_source(root, "val")) != before  # the label of the last image


def test_one_command_turns_them_into_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = write_archives(tmp_path / "archives")
    assert cli.run(data_command.main, [str(root), "--write", str(tmp_path / "shards")]) == 0
    assert "11 images in" in capsys.readouterr().out
    for split in ("train", "val"):
        written, archives = open_source(tmp_path / "shards", split), open_source(root, split)  # type: ignore[arg-type]
        assert read_all(written) == read_all(archives)  # type: ignore[arg-type]
        assert written.class_names == WNIDS


# --- What is wrong ------------------------------------------------------------------------------------------


def test_archives_that_are_cut_anywhere_are_refused(tmp_path: Path):
    """Between two inner tar files, or between two images, what remains looks whole."""
    root = write_archives(tmp_path / "archives")
    for name, split in (("ILSVRC2012_img_train.tar", "train"), ("ILSVRC2012_img_val.tar", "val")):
        whole = (root / name).read_bytes()
        for keep in range(0, len(whole.rstrip(b"\0")), 512):
            (root / name).write_bytes(whole[:keep])
            with pytest.raises(ValueError, match=rf"{name}"):
                open_source(root, split)  # type: ignore[arg-type]
        (root / name).write_bytes(whole)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"n00000000.tar": inner_tar({"a.JPEG": b"x"})}, r"has n00000000.tar: expected a tar file for each class"),
        ({f"../../{WNIDS[0]}.zip": b"PK"}, r"has ../../n01440764.zip: expected"),
        ({f"{WNIDS[0]}.tar": b"PK" + bytes(2000)}, r"cannot read .*ILSVRC2012_img_train.tar"),
        ({f"{WNIDS[0]}.tar": inner_tar({"a.JPEG": b"x"})[:1024]}, r"cannot read .*ILSVRC2012_img_train.tar"),
        ({f"{WNIDS[0]}.tar": inner_tar({"a.txt": b"x"})}, r"has no images"),
        ({}, r"has no images"),
    ],
)
def test_training_archives_that_make_no_sense(tmp_path: Path, members: dict[str, bytes], message: str):
    write_tar(tmp_path / "data" / "ILSVRC2012_img_train.tar", members)
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path / "data", "train")


def test_an_inner_tar_cannot_reach_beyond_its_end(tmp_path: Path):
    """A size in its header that is larger than the inner file."""
    data = bytearray(inner_tar({"a.JPEG": b"x" * 512}))
    data[124:136] = b"%011o\0" % 100_000
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    members = {f"{WNIDS[0]}.tar": bytes(data), f"{WNIDS[1]}.tar": inner_tar({"b.JPEG": bytes(300_000)})}
    write_tar(tmp_path / "data" / "ILSVRC2012_img_train.tar", members)
    with pytest.raises(ValueError, match=r"a.JPEG exceeds n01440764.tar"):
        open_source(tmp_path / "data", "train")


def test_without_the_devkit_there_are_no_labels(tmp_path: Path):
    root = write_archives(tmp_path / "data")
    (root / f"{DEVKIT}.tar.gz").unlink()
    with pytest.raises(ValueError, match=rf"no labels for the validation images .*: put {DEVKIT}.tar.gz into it"):
        open_source(root, "val")
    assert len(open_source(root, "train")) == 6


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (TRUTH, b"1\n2\n", "has ILSVRC2012_val_00000003.JPEG, and the devkit labels for 2 images"),
        (TRUTH, b"1\n" * 6, "has 5 images, and the devkit labels for 6: get both again"),
        (TRUTH, b"1\n2\n3\n4\n1\n", "no class has the number or wnid 4"),
        (TRUTH, b"1\nx\n", "invalid literal"),
        (TRUTH, b"\xff", "invalid"),
        (TRUTH, b"1\n" * 3_000_000, "more than 4,194,304"),
        (META, b"x" * 200, "no MAT-file of level 5"),
        (META, saved([(1, "n0", "")]), "no class has the number or wnid "),
        (META, saved([(1, WNIDS[0], "")])[:-20], "truncated"),
        (META, None, f"lacks {META}"),
    ],
)
@pytest.mark.parametrize("unpacked", [True, False])
def test_damaged_devkits(tmp_path: Path, name: str, content: bytes | None, message: str, unpacked: bool):
    root = write_archives(tmp_path / "data")
    files = devkit()
    files.pop(f"{DEVKIT}/{name}")
    if content is not None:
        files[f"{DEVKIT}/{name}"] = content
    (root / f"{DEVKIT}.tar.gz").write_bytes(gzip.compress(inner_tar(files)))
    if unpacked:
        unpack_val(root)
        for own in (root / DEVKIT).rglob("*.*"):
            own.unlink()
        for file, data in files.items():
            (root / file).write_bytes(data)
        message = "no labels for the validation images" if content is None else message
    with pytest.raises(ValueError, match=message):
        open_source(root, "val")


def test_bombs_and_cut_devkits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = write_archives(tmp_path / "data")
    path = root / f"{DEVKIT}.tar.gz"
    whole = path.read_bytes()
    for keep in (2, 100, len(whole) - 9):
        path.write_bytes(whole[:keep])
        with pytest.raises(ValueError, match=rf"{DEVKIT}.tar.gz"):
            open_source(root, "val")
    monkeypatch.setattr(idx_cifar, "ALWAYS", 10**6)
    path.write_bytes(gzip.compress(inner_tar({f"{DEVKIT}/{META}": bytes(10**7)})))
    with pytest.raises(ValueError, match=r"unpacks to more than .* bytes, so it is refused"):
        open_source(root, "val")


def test_missing_and_double_validation_images(tmp_path: Path):
    root = write_archives(tmp_path / "data")
    write_tar(root / "ILSVRC2012_img_val.tar", dict(list(VAL.items())[:4]))
    with pytest.raises(ValueError, match="has 4 images, and the devkit labels for 5"):
        open_source(root, "val")
    write_tar(root / "ILSVRC2012_img_val.tar", {**VAL, "again/ILSVRC2012_val_00000001.JPEG": b"x"})
    with pytest.raises(ValueError, match=r"damaged at again/ILSVRC2012_val_00000001.JPEG"):
        open_source(root, "val")
