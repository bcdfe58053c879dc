"""Zip files: what one reader sees, every reader sees; every bit of a member counts, and digests go along."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
import torch

from t2t_common.io import zips
from t2t_common.io.zips import open_zip
from t2t_config.weights.digests import DamagedError
from tools.reliability.fuzzing.zip_tricks import TRICKS, zipped

MEMBERS = {"archive/data.pkl": b"\x80\x02}.", "archive/data/0": b"numbers" * 9, "archive/version": b"3\n"}


def read(data: bytes) -> dict[str, bytes]:
    with open_zip(io.BytesIO(data)) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_as_it_should_be(kind: int):
    assert read(zipped(MEMBERS, kind)) == MEMBERS
    assert read(zipped({})) == {}
    assert read(zipped({"\u00e4/x": b"1"})) == {"\u00e4/x": b"1"}


def test_what_python_writes_to_a_pipe_or_for_large_files():
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *_: int) -> int:
            raise OSError

        def tell(self) -> int:
            raise OSError

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w") as archive, archive.open("large", "w", force_zip64=True) as member:
        member.write(b"1234")
    assert read(pipe.getvalue()) == {"large": b"1234"}


def test_what_pytorch_writes(tmp_path: Path):
    torch.save({"a": torch.ones(3), "b": torch.ones(100)}, tmp_path / "w.pth")
    with open_zip(tmp_path / "w.pth") as archive:
        assert "w/data.pkl" in archive.namelist()


@pytest.mark.parametrize("trick", TRICKS.values(), ids=TRICKS)
def test_what_two_readers_could_read_as_two_files_is_refused(trick):
    with pytest.raises(zipfile.BadZipFile):
        read(trick(zipped(MEMBERS)))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_one_name_twice():
    file = io.BytesIO(zipped(MEMBERS))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("archive/data.pkl", b"other")
    with pytest.raises(zipfile.BadZipFile, match="two members have the same name"):
        read(file.getvalue())


def test_bytes_cut_off_anywhere():
    data = zipped(MEMBERS)
    for length in range(len(data)):
        with pytest.raises(zipfile.BadZipFile):
            read(data[:length])


def test_members_that_are_encrypted_or_oddly_packed():
    data = zipped(MEMBERS)
    place = data.index(b"PK\x01\x02")
    with pytest.raises(zipfile.BadZipFile, match="encrypted"):
        read(data[: place + 8] + b"\x01" + data[place + 9 :])
    with pytest.raises(zipfile.BadZipFile, match="unknown compression method"):
        read(data[: place + 10] + b"\x63" + data[place + 11 :])
    with pytest.raises(FileNotFoundError), open_zip(Path("none.zip")):
        pass


# --- CRC-32 and digests -------------------------------------------------------------------------------------


def write(path: Path, folder: str = "archive/", **options: int) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr(f"{folder}data.pkl", b"pickled")
        archive.writestr(f"{folder}data/0", bytes(range(16)))
    return path


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_every_bit_of_a_member(compression: int, tmp_path: Path):
    path = write(tmp_path / "w.zip", compression=compression)
    assert zips.check_members(path) == "crc32"
    if compression == zipfile.ZIP_DEFLATED:
        return
    content = path.read_bytes()
    start = content.index(bytes(range(16)))
    for place in range(start, start + 16):
        for bit in range(8):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
            with pytest.raises(DamagedError, match=r"^archive/data/0 is not as saved \(CRC-32\)$"):
                zips.check_members(path)
            assert zips.check_members(path, ".pkl") == "crc32"  # only those that are asked for


def test_a_zip_without_any_crc32(tmp_path: Path):
    """`torch.serialization.set_crc32_options(False)` writes zeros."""
    path = write(tmp_path / "w.zip")
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            content = content.replace(info.CRC.to_bytes(4, "little"), bytes(4))
    path.write_bytes(content)
    assert zips.check_members(path) == ""


@pytest.mark.parametrize("folder", ["archive/", ""])
def test_digests_of_members(folder: str, tmp_path: Path):
    path = write(tmp_path / "w.zip", folder)
    assert zips.read_digests(path) is None
    assert zips.check_digests(path) == "crc32"
    zips.add_digests(path)
    assert zips.check_digests(path) == "sha256"
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist()[-1] == f"{folder}sha256.json"
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{folder}more", b"")
    with pytest.raises(DamagedError, match="more is not among what was saved"):
        zips.check_digests(path)


@pytest.mark.parametrize("text", ["[]", "{", "[" * 10**5])
def test_digests_that_are_none(text: str, tmp_path: Path):
    path = write(tmp_path / "w.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/sha256.json", text)
    with pytest.raises(DamagedError, match=r"sha256\.json"):
        zips.read_digests(path)


def test_packed_digests_are_not_unpacked(tmp_path: Path):
    path = write(tmp_path / "w.zip")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/sha256.json", " " * 10**6)
    with pytest.raises(DamagedError):
        zips.read_digests(path)


def test_what_is_no_zip_has_none(tmp_path: Path):
    (tmp_path / "text").write_text("text")
    assert zips.read_digests(tmp_path / "text") is None
