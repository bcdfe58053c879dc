"""Tar shards that are not whole: cut off, damaged, or missing in a row."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest

from t2t_common.data import open_source
from t2t_common.data.readers.sources import notes_of
from t2t_config.weights.download import cache_dir
from tests.common.data.readers.test_shards import jpeg, write_tar


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2T_CACHE", str(tmp_path / "cache"))


def test_a_tar_cut_anywhere_is_refused(tmp_path: Path):
    """Also between two members, where tarfile takes what is left for whole; unless only padding is gone."""
    path = write_tar(tmp_path / "train-0.tar", {f"{i}.{end}": b"7" for i in range(5) for end in ("jpg", "cls")})
    whole = path.read_bytes()
    end = len(whole.rstrip(b"\0"))
    passed = []
    for keep in range(0, len(whole), 256):
        path.write_bytes(whole[:keep])
        with contextlib.suppress(ValueError):
            assert len(open_source(tmp_path, "train")) == 5
            passed.append(keep)
    assert all(keep >= end + 1024 for keep in passed)
    assert len(passed) < 4
    path.write_bytes(whole)
    assert len(open_source(tmp_path, "train")) == 5


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (b"", "it is cut short"),
        (b"\0" * 512, "it is cut short"),
        (b"\0" * (2 << 20), "only zeros after byte"),
        (b"\0" * 512 + b"x" * 512, "something else than a member"),
    ],
)
def test_the_end_of_a_tar(tmp_path: Path, end: bytes, message: str):
    path = write_tar(tmp_path / "train-0.tar", {"0.jpg": b"7" * 512, "0.cls": b"0" * 512})
    path.write_bytes(path.read_bytes()[: 4 * 512] + end)
    with pytest.raises(ValueError, match=rf"train-0.tar \(.*{message}"):
        open_source(tmp_path, "train")


def test_two_tars_in_one_are_refused(tmp_path: Path):
    """Of `cat a.tar b.tar` tarfile reads the first alone."""
    path = write_tar(tmp_path / "train-0.tar", {"0.jpg": jpeg(0), "0.cls": b"0"})
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(ValueError, match=r"something else than a member .* two files in one"):
        open_source(tmp_path, "train")


def test_a_damaged_header_does_not_end_the_shard(tmp_path: Path):
    path = write_tar(tmp_path / "train-0.tar", {"0.jpg": b"7", "0.cls": b"0", "1.jpg": b"7", "1.cls": b"0"})
    data = bytearray(path.read_bytes())
    data[4 * 512 + 100] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="something else than a member after byte 2048"):
        open_source(tmp_path, "train")


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (("000000", "000001", "000002"), None),
        (("1", "2", "10", "3", "4", "5", "6", "7", "8", "9"), None),
        (("2012",), None),
        (("000000", "000002"), "1 of the shards up to .*000002.tar are missing, the first is number 1"),
        (("3", "4"), "3 of the shards up to .*4.tar are missing, the first is number 0"),
    ],
)
def test_shards_missing_in_a_row(tmp_path: Path, numbers: tuple[str, ...], message: str | None):
    for number in numbers:
        write_tar(tmp_path / f"train-{number}.tar", {"0.jpg": jpeg(0), "0.cls": b"0"})
    if message is None:
        source = open_source(tmp_path, "train")
        assert len(source) == len(numbers)
        assert bool(notes_of(source)) == ("1" in numbers)  # whether there was a number 0 nobody knows
        return
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path, "train")


def test_an_index_from_before_shards_were_read_to_their_end(tmp_path: Path):
    path = write_tar(tmp_path / "data" / "train-0.tar", {"0.jpg": jpeg(0), "0.cls": b"0"})
    open_source(tmp_path / "data", "train")
    whole = path.read_bytes()
    path.write_bytes(whole[: -(-len(whole.rstrip(b"\0")) // 512) * 512])
    (kept,) = (cache_dir() / "tar-index").iterdir()
    with np.load(kept) as arrays:
        columns = {name: arrays[name] for name in arrays if name != "version"}
    status = path.stat()
    np.savez(kept, **{**columns, "stamp": np.array([(status.st_size, status.st_mtime_ns)], np.int64)})
    with pytest.raises(ValueError, match=r"train-0.tar .*cut short"):
        open_source(tmp_path / "data", "train")
