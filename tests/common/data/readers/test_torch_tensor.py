from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from t2t_common.data.readers import torch_tensor
from t2t_common.data.readers.torch_tensor import read_tensor
from tools.reliability.fuzzing.zip_tricks import TRICKS, zipped


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.float32, torch.float64, torch.uint8, torch.int16, torch.int32, torch.int64]
)
def test_tensors_of_every_kind(tmp_path: Path, dtype: torch.dtype):
    tensor = (100 * torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0))).to(dtype)
    torch.save(tensor, tmp_path / "t.pt")
    found = read_tensor(tmp_path / "t.pt")
    assert found.dtype == tensor.numpy().dtype
    np.testing.assert_array_equal(found, tensor.numpy())


def test_a_view_is_read_as_what_it_shows(tmp_path: Path):
    """As the authors' script saves: axes in another order, here of a part of a larger storage."""
    tensor = torch.arange(240.0).view(4, 5, 12)[1:3, :, 2:9].permute(0, 2, 1)
    torch.save(tensor, tmp_path / "t.pt")
    found = read_tensor(tmp_path / "t.pt")
    np.testing.assert_array_equal(found, tensor.numpy())
    found[0] = 0  # an array of its own
    torch.save(torch.tensor(7.0), tmp_path / "scalar.pt")
    assert read_tensor(tmp_path / "scalar.pt") == 7


class Call:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("run",)


def rewrite(path: Path, target: Path, change: Any, compression: int = zipfile.ZIP_STORED) -> None:
    """A copy of a file of torch.save with `change(name, content)` for its members."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))


def test_what_is_no_single_tensor_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    whole, bad = tmp_path / "whole.pt", tmp_path / "bad.pt"
    torch.save(torch.arange(6.0), whole)

    def refused(message: str) -> None:
        with pytest.raises(ValueError, match=message):
            read_tensor(bad)

    torch.save({"a": torch.zeros(2)}, bad)
    refused("it holds a dict, not one tensor")
    torch.save([torch.zeros(2), torch.ones(2)], bad)
    refused("several tensors")
    bad.write_bytes(whole.read_bytes()[:200])
    refused("zip")
    torch.save(torch.zeros(2), bad, _use_new_zipfile_serialization=False)
    refused("zip")
    rewrite(whole, bad, lambda name, content: content[:8] if name.endswith("data/0") else content)
    refused("exceeds its storage")
    rewrite(whole, bad, lambda name, content: pickle.dumps(Call()) if name.endswith(".pkl") else content)
    refused("would call builtins.print")
    rewrite(whole, bad, lambda name, content: content, zipfile.ZIP_DEFLATED)
    refused("compressed")
    rewrite(whole, bad, lambda name, content: b"big" if name.endswith("byteorder") else content)
    refused("big-endian")
    assert "run" not in capsys.readouterr().out
    with pytest.raises(FileNotFoundError):
        read_tensor(tmp_path / "none.pt")


def test_a_key_that_takes_forever(tmp_path: Path):
    """A tuple of twice a tuple of twice ...: 2^60 places are walked through."""
    torch.save(torch.ones(2), tmp_path / "t.pt")
    with zipfile.ZipFile(tmp_path / "t.pt") as old:
        members = {info.filename: old.read(info) for info in old.infolist()}
    with zipfile.ZipFile(tmp_path / "t.pt", "w") as new:
        for name, content in members.items():
            new.writestr(name, b"\x80\x02})" + b"2\x86" * 60 + b"K\x01s." if name.endswith("data.pkl") else content)
    with pytest.raises(ValueError, match="repeated use"):
        read_tensor(tmp_path / "t.pt")


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02})" + b"\x85" * 900 + b"K\x01s.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x0c\0\0\0__defaults__K\x01\x85s\x86b.",
        b"\x80\x02ccollections\nOrderedDict\n}X\x01\0\0\0aK\x01sb.",
    ],
    ids=["tuples in tuples", "defaults of a function", "attributes of a class"],
)
def test_what_would_end_or_change_the_process(tmp_path: Path, pickled: bytes):
    torch.save(torch.ones(2), tmp_path / "whole.pt")
    rewrite(tmp_path / "whole.pt", tmp_path / "t.pt", lambda name, old: pickled if name.endswith(".pkl") else old)
    with pytest.raises(ValueError, match=r"deep|it would change"):
        read_tensor(tmp_path / "t.pt")
    assert torch_tensor._rebuild.__defaults__ is None
    assert read_tensor(tmp_path / "whole.pt").tolist() == [1, 1]


@pytest.mark.parametrize("trick", TRICKS.values(), ids=TRICKS)
def test_an_archive_that_reads_as_two_is_refused(tmp_path: Path, trick: Any):
    torch.save(torch.ones(2), tmp_path / "whole.pt")
    with zipfile.ZipFile(tmp_path / "whole.pt") as archive:
        plain = zipped({info.filename: archive.read(info) for info in archive.infolist()})
    (tmp_path / "t.pt").write_bytes(trick(plain))
    with pytest.raises(ValueError, match=r"."):
        read_tensor(tmp_path / "t.pt")
