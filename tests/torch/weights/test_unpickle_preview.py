"""What `torch.load(weights_only=True)` would do for a few bytes is found out before it does it."""

from __future__ import annotations

import argparse
import pickle
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from t2t_torch.checkpoint_file import read_state_dict
from t2t_torch.weights.safe_unpickle import read_pickle
from tests.support import foreign
from tests.torch.weights.test_safe_unpickle import WEIGHTS, refusal, with_pickle
from tools.reliability.fuzzing.zip_tricks import TRICKS, two_directories, zipped

STORAGE = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX%c\0\0\0%sX\x03\0\0\0cpuJ%stQ"


def storage(key: bytes, numel: int) -> bytes:
    return STORAGE % (len(key), key, numel.to_bytes(4, "little"))


def put_first(extra: bytes) -> Callable[[bytes], bytes]:
    """`extra` makes one object, which is dropped."""
    return lambda content: content[:2] + extra + b"0" + content[2:]


def number(value: int) -> bytes:
    return b"\x8a\x08" + value.to_bytes(8, "little")


@pytest.fixture
def never_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("torch.load was called"))


HOSTILE = {
    "a tensor class with a size": b"ctorch\nTensor\n" + number(1 << 40) + b"\x85R",
    "another tensor class": b"ctorch\nFloatTensor\n" + number(1 << 20) + number(1 << 20) + b"\x86R",
    "a storage class with a size": b"ctorch.storage\nUntypedStorage\n" + number(1 << 40) + b"\x85R",
    "a storage larger than its record": storage(b"0", 1_000_000),
    "a storage without a record": storage(b"77", 1),
    "a name with a zero in it": storage(b"0\0x", 1),
    "a tensor outside of its storage": b"ctorch._utils\n_rebuild_tensor_v2\n("
    + storage(b"0", 6)
    + b"K\x04K\x05\x85K\x01\x85\x89NtR",
    "a key that is no text": storage(b"0", 6).replace(b"X\x01\0\0\x000", b"K\x00"),
    "a copy of an expanded tensor": b"ctorch._utils\n_rebuild_device_tensor_from_cpu_tensor\n("
    b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage(b"0", 6) + b"K\0M\xd0\x07\x85K\0\x85\x89NtR"
    b"ctorch\nfloat64\nX\x03\0\0\0cpu\x89tR",
    "another encoding": b"c_codecs\nencode\nX\x02\0\0\0abX\x08\0\0\0punycode\x86R",
}


@pytest.mark.usefixtures("never_loaded")
@pytest.mark.parametrize("extra", HOSTILE.values(), ids=HOSTILE)
def test_a_call_that_takes_more_than_the_file_is_refused_before_it_is_made(tmp_path: Path, extra: bytes):
    with_pickle(tmp_path / "w.pth", put_first(extra))
    refusal(tmp_path / "w.pth")


@pytest.mark.usefixtures("never_loaded")
@pytest.mark.parametrize("kind", [b"ccollections\nOrderedDict\n", b"c__builtin__\nset\n", b"ccollections\nCounter\n"])
def test_one_list_made_a_container_again_and_again(tmp_path: Path, kind: bytes):
    """A list is put into the memory while it is empty, so its uses look like nothing."""
    items = b"".join(b"K\x01K%c\x86" % (i % 256) for i in range(5000))
    extra = b"]r\0\x09\0\0(" + items + b"e0](" + (kind + b"j\0\x09\0\0\x85R") * 2000 + b"e"
    with_pickle(tmp_path / "w.pth", put_first(extra))
    refusal(tmp_path / "w.pth")


@pytest.mark.usefixtures("never_loaded")
def test_one_record_in_many_spellings(tmp_path: Path):
    """PyTorch's zip reader takes no notice of case: each spelling is one more copy of the record."""
    torch.save({"x": torch.zeros(1000)}, tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth") as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        for name, content in members.items():
            found = content.replace(b"X\x01\0\0\x000", b"X\x02\0\0\0aB") if name.endswith(".pkl") else content
            archive.writestr(name.replace("data/0", "data/ab"), found)
    refusal(tmp_path / "w.pth")


@pytest.mark.usefixtures("never_loaded")
def test_a_legacy_file_without_the_numbers_of_a_storage(tmp_path: Path):
    """PyTorch would take what lies in the memory."""
    foreign.save_legacy({"x": torch.zeros(50), "y": torch.ones(50)}, tmp_path / "w.pth")
    content = (tmp_path / "w.pth").read_bytes()
    with (tmp_path / "w.pth").open("rb") as file:
        for _ in range(3):
            pickle.load(file)
        unpickler = pickle._Unpickler(file)
        unpickler.persistent_load = lambda pid: None  # type: ignore[method-assign, assignment]
        unpickler.find_class = lambda module, name: lambda *args: None  # type: ignore[method-assign, assignment, return-value]
        unpickler.load()
        start = file.tell()
        keys = pickle.load(file)
    (tmp_path / "w.pth").write_bytes(content[:start] + pickle.dumps(keys[:1], 2) + content[-2 * (8 + 200) :])
    refusal(tmp_path / "w.pth")


def test_a_refused_file_leaves_no_sparse_tensor_for_the_next_one(tmp_path: Path):
    """PyTorch keeps those of a file that it did not read to its end, and refuses the next file for them."""
    indices, values = torch.tensor([[7]]), torch.tensor([1.0])
    bad = torch.sparse_coo_tensor(indices, values, (3,), check_invariants=False)
    torch.save({"x": bad}, tmp_path / "bad.pth")
    with zipfile.ZipFile(tmp_path / "bad.pth") as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(tmp_path / "bad.pth", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content[:-1] + b"cos\nsystem\n0." if name.endswith(".pkl") else content)
    assert "would run code" in refusal(tmp_path / "bad.pth")
    torch.save(WEIGHTS, tmp_path / "good.pth")
    with torch.sparse.check_sparse_tensor_invariants():
        assert torch.load(tmp_path / "good.pth", weights_only=True).keys() == WEIGHTS.keys()


@pytest.mark.parametrize("save", [foreign.save_zip, foreign.save_legacy])
def test_everything_that_checkpoints_hold_is_read(tmp_path: Path, save: Any):
    base = torch.arange(24.0)
    content = {
        "views": {"whole": base, "part": base[3:9], "grid": base.view(4, 6).T, "none": torch.zeros(0, 3)},
        "kinds": {str(kind): torch.ones(3, dtype=kind) for kind in (torch.bfloat16, torch.bool, torch.complex64)},
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "counts": Counter("aab"),
        "order": OrderedDict(a=1),
        "set": {1, 2},
        "sizes": torch.Size([1, 2]),
        "dtype": torch.float16,
        "device": torch.device("cpu"),
        "bytes": b"abc",
        "args": argparse.Namespace(lr=0.1, names=["a"], inner=argparse.Namespace(x=1)),
        "scalar": torch.tensor(3.0),
        "complex": 1 + 2j,
    }
    save(content, tmp_path / "w.pth")
    found = read_pickle(tmp_path / "w.pth")
    assert torch.equal(found["views"]["grid"], base.view(4, 6).T)
    assert all(torch.equal(found["kinds"][name], value) for name, value in content["kinds"].items())  # type: ignore[attr-defined]
    assert vars(found["args"].inner) == {"x": 1}
    for name in ("counts", "order", "set", "sizes", "dtype", "device", "bytes", "scalar", "complex"):
        assert found[name] == content[name]


def test_newer_dtypes_without_a_storage_class(tmp_path: Path):
    torch.save(
        {"a": torch.ones(3, dtype=torch.uint16), "b": torch.ones(2, dtype=torch.float8_e4m3fn)}, tmp_path / "w.pth"
    )
    assert read_pickle(tmp_path / "w.pth")["a"].tolist() == [1, 1, 1]


# ---- zip files that read as another file to PyTorch ----


@pytest.mark.parametrize("trick", TRICKS.values(), ids=TRICKS)
def test_only_a_zip_that_is_the_same_to_every_reader_is_read(
    tmp_path: Path, trick: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
):
    torch.save(WEIGHTS, tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth") as archive:
        plain = zipped({info.filename: archive.read(info) for info in archive.infolist()})
    (tmp_path / "w.pth").write_bytes(plain)
    assert read_state_dict(tmp_path / "w.pth").keys() == WEIGHTS.keys()
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("it was read"))
    (tmp_path / "w.pth").write_bytes(trick(plain))
    assert "truncated, corrupt" in refusal(tmp_path / "w.pth")


@pytest.mark.usefixtures("never_loaded")
def test_a_second_directory_with_a_bomb(tmp_path: Path):
    """Python's reader took the directory before the end, PyTorch's the one that the end names."""
    torch.save({"x": torch.zeros(5_000_000, dtype=torch.uint8)}, tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth") as archive:
        bomb = zipped({info.filename: archive.read(info) for info in archive.infolist()}, zipfile.ZIP_DEFLATED)
    (tmp_path / "w.pth").write_bytes(two_directories(bomb))
    assert (tmp_path / "w.pth").stat().st_size < 20_000
    assert "truncated, corrupt" in refusal(tmp_path / "w.pth")


@pytest.mark.parametrize("save", [foreign.save_zip, foreign.save_legacy])
@pytest.mark.filterwarnings("ignore")
def test_unusual_tensors_pass_the_dry_run(tmp_path: Path, save: Any):
    """Whether they are weights is for others to say."""
    square = torch.ones(8, 8)
    content = {
        "sparse": square.to_sparse(),
        "rows": square.to_sparse_csr(),
        "quantised": torch.quantize_per_tensor(square, 0.1, 0, torch.quint8),
        "by channel": torch.quantize_per_channel(square, torch.ones(8), torch.zeros(8), 0, torch.qint8),
        "negative bit": torch.view_as_complex(torch.ones(4, 2)).conj().imag,
        "conjugate": torch.ones(3, dtype=torch.complex64).conj(),
        "meta": torch.ones(3, device="meta"),
        "padding": torch.ones(500),
    }
    save(content, tmp_path / "w.pth")
    assert read_pickle(tmp_path / "w.pth").keys() == content.keys()
