"""Zip files: what one reader sees, every reader sees."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
import torch

from reliability.fuzzing.zip_tricks import TRICKS, zipped
from t2t_common.zips import open_zip

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
    with pytest.raises(zipfile.BadZipFile, match="two members have one name"):
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
    with pytest.raises(zipfile.BadZipFile, match="unusual"):
        read(data[: place + 10] + b"\x63" + data[place + 11 :])
    with pytest.raises(FileNotFoundError), open_zip(Path("none.zip")):
        pass
