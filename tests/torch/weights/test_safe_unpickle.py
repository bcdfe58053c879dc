"""Pickles: nothing of theirs is run, and no small file fills the memory."""

from __future__ import annotations

import argparse
import os
import pickle
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from t2t_torch.checkpoint_file import read_checkpoint, read_state_dict
from t2t_torch.weights.safe_unpickle import ALLOWED, MAX_EXPANSION, read_pickle
from tests.support import foreign

WEIGHTS = {"head.weight": torch.arange(6.0).reshape(2, 3), "head.bias": torch.tensor([1.0, 2.0])}


def refusal(path: Path) -> str:
    """The message of the ValueError: one line that names the file."""
    with pytest.raises(ValueError, match=path.name) as error:
        read_state_dict(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400
    return str(error.value)


# ---- files that would fill the memory ----


def zip_bomb(path: Path, member: str, size: int) -> None:
    """A file of torch.save with a member in it that is `size` zeros, compressed a thousandfold."""
    torch.save(WEIGHTS, path)
    block = bytes(1 << 20)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive, archive.open(f"{path.stem}/{member}", "w") as out:
        for _ in range(size // len(block)):
            out.write(block)


@pytest.mark.parametrize("member", ["data/99", "data.pkl", "readme"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_bomb_is_refused_before_it_is_read(tmp_path: Path, member: str, monkeypatch: pytest.MonkeyPatch):
    zip_bomb(tmp_path / "bomb.pth", member, size=64 << 20)
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("it was read"))
    message = refusal(tmp_path / "bomb.pth")
    assert "unpacks to 67,1" in message
    assert "refused" in message


def test_a_bomb_of_overlapping_members(tmp_path: Path):
    """A directory that names the same bytes many times (Fifield 2019)."""
    path = tmp_path / "bomb.pth"
    torch.save({"x": torch.zeros(25_000)}, path)
    with zipfile.ZipFile(path, "a") as archive:
        whole = max(archive.infolist(), key=lambda info: info.file_size)
        archive.filelist += [whole] * 100
        archive._didModify = True  # so that the directory is written anew
    assert "unpacks to" in refusal(path)


def test_a_file_that_is_compressed_a_little_is_read(tmp_path: Path):
    torch.save({"x": torch.zeros(1000), "y": torch.rand(1000)}, tmp_path / "stored.pth")
    with zipfile.ZipFile(tmp_path / "stored.pth") as old, zipfile.ZipFile(tmp_path / "w.pth", "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info), zipfile.ZIP_DEFLATED)
    assert (tmp_path / "w.pth").stat().st_size < (tmp_path / "stored.pth").stat().st_size
    assert torch.equal(read_state_dict(tmp_path / "w.pth")["x"], torch.zeros(1000))


@pytest.mark.parametrize("save", [foreign.save_zip, foreign.save_legacy])
def test_one_number_as_a_huge_tensor(tmp_path: Path, save: Any):
    """Strides of zero: a view of any shape of four bytes."""
    save({"pos_embed": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "w.pth")
    assert "unpacks to 4,000,000,000,000 bytes" in refusal(tmp_path / "w.pth")


def test_a_legacy_file_that_declares_a_huge_storage(tmp_path: Path):
    foreign.save_legacy({"x": torch.zeros(1234567)}, tmp_path / "w.pth")
    content = (tmp_path / "w.pth").read_bytes()
    size = (1234567).to_bytes(4, "little")
    assert content.count(b"J" + size) >= 2  # of the storage and of the tensor
    (tmp_path / "w.pth").write_bytes(content.replace(b"J" + size, b"J" + (2**31 - 1).to_bytes(4, "little"))[:5000])
    start = time.process_time()
    assert "unpacks to 8,589,934,588 bytes" in refusal(tmp_path / "w.pth")
    assert time.process_time() - start < 5


def test_the_same_array_many_times(tmp_path: Path):
    """pickle remembers: many names, one memory; as tensors they would all be copies."""
    array = np.zeros(100_000, np.float32)
    foreign.save_paddle({f"x{i}": array for i in range(100)}, tmp_path / "w.pdparams")
    assert (tmp_path / "w.pdparams").stat().st_size < 500_000
    assert "unpacks to 40,000,000 bytes" in refusal(tmp_path / "w.pdparams")


def test_the_same_text_encoded_many_times(tmp_path: Path):
    """Protocol 2 keeps bytes as text, to be encoded when read: again for every use, if somebody wants so."""
    call = b"c_codecs\nencode\nq\x01"
    text = b"X" + (100_000).to_bytes(4, "little") + b"a" * 100_000 + b"q\x02"
    uses = b"h\x01h\x02X\x06\x00\x00\x00latin1\x86R" * 5000
    (tmp_path / "w.pdparams").write_bytes(b"\x80\x02(" + call + text + uses + b"l.")
    assert "truncated, corrupt" in refusal(tmp_path / "w.pdparams")


def with_pickle(path: Path, change: Callable[[bytes], bytes]) -> None:
    """A file of torch.save whose pickle `change` made another."""
    torch.save(WEIGHTS, path)
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, change(content) if name.endswith("data.pkl") else content)


def peak_memory_of_refusal(path: Path) -> int:
    """Bytes by which refusing a file raises the most memory that its process ever had."""
    script = (
        "import resource, sys; from t2t_torch.checkpoint_file import read_state_dict\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "before = peak()\n"
        "try: read_state_dict(sys.argv[1])\n"
        "except ValueError: print(peak() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_a_bytearray_of_any_size(tmp_path: Path):
    call = b"cbuiltins\nbytearray\n" + b"J" + (400_000_000).to_bytes(4, "little") + b"\x85R0"
    with_pickle(tmp_path / "w.pth", lambda content: content[:2] + call + content[2:])
    assert "would run code when loaded (builtins.bytearray)" in refusal(tmp_path / "w.pth")
    assert peak_memory_of_refusal(tmp_path / "w.pth") < 50e6


def test_the_same_text_encoded_many_times_by_torch(tmp_path: Path):
    call = b"c_codecs\nencode\nr\x00\x01\x00\x00"
    text = b"X" + (100_000).to_bytes(4, "little") + b"a" * 100_000 + b"r\x01\x01\x00\x00"
    uses = b"j\x00\x01\x00\x00j\x01\x01\x00\x00X\x06\x00\x00\x00latin1\x86R" * 5000
    with_pickle(tmp_path / "w.pth", lambda content: content[:2] + call + text + b"]" + uses + content[2:])
    assert "truncated, corrupt" in refusal(tmp_path / "w.pth")
    assert peak_memory_of_refusal(tmp_path / "w.pth") < 50e6


def test_a_memory_with_places_for_billions(tmp_path: Path):
    """LONG_BINPUT names the place where an object is remembered."""
    (tmp_path / "w.pdparams").write_bytes(b"\x80\x02}r" + (20_000_000).to_bytes(4, "little") + b".")
    assert "no state dict" in refusal(tmp_path / "w.pdparams")
    assert peak_memory_of_refusal(tmp_path / "w.pdparams") < 50e6


# ---- files that would run code ----


class Malicious:
    """Unpickling this makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_paddle_file(tmp_path: Path, protocol: int):
    content = {"head.weight": np.zeros((2, 3), np.float32), "x": Malicious(tmp_path / "trace")}
    foreign.save_paddle(content, tmp_path / "w.pdparams", protocol)
    assert "would run code" in refusal(tmp_path / "w.pdparams")
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("builtins eval", "('1')"),
        ("builtins getattr", "('a', 'b')"),
        ("numpy fromfile", "('/etc/passwd')"),
        ("numpy load", "('x')"),
        ("numpy.lib.npyio load", "('x')"),
        ("torch load", "('x')"),
        ("operator attrgetter", "('x')"),
        ("argparse FileType", "('w')"),
        ("argparse Namespace.__init__.__globals__", "('x')"),
    ],
)
def test_anything_that_is_not_listed(tmp_path: Path, function: str, arguments: str):
    module, name = function.split()
    (tmp_path / "w.pth").write_bytes(f"c{module}\n{name}\n(S{arguments[1:-1].split(',')[0]}\ntR.".encode())
    assert f"would run code when loaded ({module}.{name})" in refusal(tmp_path / "w.pth")


def test_a_dotted_name_does_not_reach_inside(tmp_path: Path):
    """STACK_GLOBAL may name attributes of attributes."""
    parts = [b"argparse", b"Namespace.__init__"]
    texts = b"".join(b"\x8c" + bytes([len(part)]) + part for part in parts)
    (tmp_path / "w.pth").write_bytes(b"\x80\x04" + texts + b"\x93.")
    assert "would run code when loaded (argparse.Namespace.__init__)" in refusal(tmp_path / "w.pth")


# ---- numpy's pickles ----


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2", "<i8", "|u1", "|b1"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_keep_every_bit(tmp_path: Path, protocol: int, dtype: str, order: Any):
    array = np.asarray(np.random.RandomState(0).standard_normal((3, 5)) * 100, order=order).astype(dtype)
    foreign.save_paddle({"x": array}, tmp_path / "w.pdparams", protocol)
    loaded = read_pickle(tmp_path / "w.pdparams")
    assert loaded["x"].is_contiguous()
    np.testing.assert_array_equal(loaded["x"].numpy(), array)
    assert loaded["x"].numpy().dtype == array.dtype.newbyteorder("=")


def test_files_of_numpy_1(tmp_path: Path):
    foreign.save_paddle({"x": np.ones(3, np.float32)}, tmp_path / "w.pdparams", protocol=2)
    content = (tmp_path / "w.pdparams").read_bytes()
    assert b"numpy._core.multiarray" in content
    (tmp_path / "w.pdparams").write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert torch.equal(read_state_dict(tmp_path / "w.pdparams")["x"], torch.ones(3))


@pytest.mark.parametrize("array", [np.array([{}]), np.array(["a"]), np.zeros(1, "c8"), np.zeros(1, "f4,f4")])
def test_arrays_that_are_no_weights(tmp_path: Path, array: np.ndarray):
    foreign.save_paddle({"x": array}, tmp_path / "w.pdparams")
    assert "holds no state dict (x)" in refusal(tmp_path / "w.pdparams")


def test_paddles_training_files(tmp_path: Path):
    """Nested tensors are pickled as (name, array); `model_ema` is taken like everybody's."""

    class Tensor:
        def __init__(self, name: str, value: float) -> None:
            self.name, self.value = name, np.full((2, 3), value, np.float32)

        def __reduce__(self) -> tuple[Any, ...]:
            return tuple, ((self.name, self.value),)

    content = {"model": {"a": Tensor("p_0", 1.0)}, "model_ema": {"a": Tensor("p_1", 2.0)}, "epoch": 3}
    foreign.save_paddle(content, tmp_path / "w.pdparams")
    checkpoint = read_checkpoint(tmp_path / "w.pdparams")
    assert (checkpoint.entry, checkpoint.is_ema) == ("model_ema", True)
    assert torch.equal(checkpoint.state_dict["a"], torch.full((2, 3), 2.0))
    assert torch.equal(read_state_dict(tmp_path / "w.pdparams", use_ema=False)["a"], torch.ones(2, 3))


@pytest.mark.parametrize("protocol", [2, 4])
def test_truncated_paddle_files(tmp_path: Path, protocol: int):
    foreign.save_paddle({"a.weight": np.ones((4, 5), np.float32)}, tmp_path / "whole.pdparams", protocol)
    content = (tmp_path / "whole.pdparams").read_bytes()
    for length in range(len(content)):
        (tmp_path / "cut.pdparams").write_bytes(content[:length])
        assert "truncated, corrupt" in refusal(tmp_path / "cut.pdparams")


def test_numpy_scalars_beside_the_weights(tmp_path: Path):
    """timm keeps metrics, which may be numpy's; torch.load alone refuses such a file."""
    content = {
        "state_dict": OrderedDict(WEIGHTS),
        "metric": np.float64(81.5),
        "metrics": OrderedDict(top1=np.float32(81.5), history=np.arange(3.0)),
        "args": argparse.Namespace(lr=np.float64(5e-4), mean=(0.5,)),
    }
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "w.pth", weights_only=True)
    assert torch.equal(read_state_dict(tmp_path / "w.pth")["head.weight"], WEIGHTS["head.weight"])
    assert read_pickle(tmp_path / "w.pth")["metric"] == 81.5


def test_names_that_are_no_text(tmp_path: Path):
    torch.save({0: torch.zeros(1)}, tmp_path / "w.pth")
    assert "holds no state dict (0)" in refusal(tmp_path / "w.pth")


def test_the_limit_leaves_room():
    assert MAX_EXPANSION >= 2


# ---- files that never end ----

TWICE = b")" + b"".join(b"r" + bytes([i, 9, 0, 0]) + b"j" + bytes([i, 9, 0, 0]) + b"\x86" for i in range(60))
"""A tuple of twice a tuple of twice ...; as a key, all of its 2^60 places are walked through."""


@pytest.mark.parametrize("kind", ["zip", "legacy", "plain"])
def test_a_key_that_takes_forever(tmp_path: Path, kind: str):
    if kind == "zip":
        with_pickle(tmp_path / "w.pth", lambda content: content[:2] + b"}" + TWICE + b"K\x01s0" + content[2:])
    elif kind == "legacy":
        foreign.save_legacy(WEIGHTS, tmp_path / "w.pth")
        content = (tmp_path / "w.pth").read_bytes()
        place = content.index(b"}q\x00", 40)
        (tmp_path / "w.pth").write_bytes(content[:place] + b"}" + TWICE + b"K\x01s0" + content[place:])
    else:
        (tmp_path / "w.pth").write_bytes(b"\x80\x02}" + TWICE + b"K\x01s.")
    assert "truncated, corrupt" in refusal(tmp_path / "w.pth")


@pytest.mark.parametrize("kind", ["zip", "legacy", "plain"])
def test_a_key_of_tuples_in_tuples(tmp_path: Path, kind: str):
    """Their hash took a frame of C for each, which ended the process."""
    deep = b"})" + b"\x85" * 250_000 + b"K\x01s"
    if kind == "zip":
        with_pickle(tmp_path / "w.pth", lambda content: content[:2] + deep + b"0" + content[2:])
    elif kind == "legacy":
        foreign.save_legacy(WEIGHTS, tmp_path / "w.pth")
        content = (tmp_path / "w.pth").read_bytes()
        place = content.index(b"}q\x00", 40)
        (tmp_path / "w.pth").write_bytes(content[:place] + deep + b"0" + content[place:])
    else:
        (tmp_path / "w.pth").write_bytes(b"\x80\x02" + deep + b".")
    assert "truncated, corrupt" in refusal(tmp_path / "w.pth")


# ---- files that would change the process ----

CHANGE = b"N}X\x08\0\0\0__init__NsX\x05\0\0\0extraK\x01s\x86b"
"""State of an object with slots: each is set as an attribute."""


@pytest.mark.parametrize(
    "name", [*ALLOWED, "builtins.tuple", "_codecs.encode", "collections.OrderedDict", "torch.FloatStorage"]
)
@pytest.mark.parametrize("kind", ["zip", "plain"])
def test_a_refused_pickle_changes_no_class_and_no_function(tmp_path: Path, name: str, kind: str):
    module, _, last = name.rpartition(".")
    call = f"c{module}\n{last}\n".encode() + CHANGE
    before = {kept: dict(vars(kept)) for kept in (argparse.Namespace, OrderedDict, *ALLOWED.values())}
    if kind == "zip":
        with_pickle(tmp_path / "w.pth", lambda content: content[:2] + call + b"0" + content[2:])
    else:
        (tmp_path / "w.pth").write_bytes(b"\x80\x02" + call + b".")
    message = refusal(tmp_path / "w.pth")
    assert f"would run code when loaded ({name})" in message
    assert {kept: dict(vars(kept)) for kept in before} == before
    assert argparse.ArgumentParser().parse_args([]) == argparse.Namespace()


def test_a_namespace_of_a_file_is_a_stand_in(tmp_path: Path):
    """And what it holds is there."""
    torch.save({"state_dict": WEIGHTS, "args": argparse.Namespace(lr=0.1)}, tmp_path / "w.pth")
    args = read_pickle(tmp_path / "w.pth")["args"]
    assert args.lr == 0.1
    assert not isinstance(args, argparse.Namespace)


def test_a_dictionary_that_is_there_a_thousand_times(tmp_path: Path):
    """It is looked through once: not its entries times its uses."""
    inner: dict[str, Any] = {str(i): None for i in range(3000)}
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps({str(i): inner for i in range(30_000)}))
    start = time.process_time()
    found = read_pickle(tmp_path / "w.pdparams")
    assert time.process_time() - start < 10
    assert found["0"] is found["29999"]


def test_a_long_text_made_a_tuple_again_and_again(tmp_path: Path):
    """Paddle's files call `tuple`, eight bytes for each letter."""
    call = b"cbuiltins\ntuple\nq\x01" + b"B" + (300_000).to_bytes(4, "little") + b"a" * 300_000 + b"q\x0200"
    (tmp_path / "w.pdparams").write_bytes(b"\x80\x03" + call + b"](" + b"h\x01h\x02\x85R" * 100 + b"e.")
    assert "truncated, corrupt" in refusal(tmp_path / "w.pdparams")
    assert peak_memory_of_refusal(tmp_path / "w.pdparams") < 50e6


def test_a_name_of_code_is_told_in_one_line(tmp_path: Path):
    (tmp_path / "w.pth").write_bytes(b"cos\n\x1b[31m" + b"x" * 5000 + b"\n(tR.")
    assert "would run code when loaded (os.\\x1b[31mxxx" in refusal(tmp_path / "w.pth")
