"""Reading and writing weights: every layout, every kind of damage, nothing executed, nothing half-written."""

from __future__ import annotations

import argparse
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from t2t_common.io import zips
from t2t_torch.checkpoint_file import read_checkpoint, read_state_dict, save_checkpoint
from tests.support.full_disk import on_full_disk

RAW = {"head.weight": torch.arange(6.0).reshape(2, 3), "head.bias": torch.tensor([1.0, 2.0])}
EMA = {name: value + 0.5 for name, value in RAW.items()}
TRAINING = {
    "epoch": 309,
    "arch": "t2t_vit_14",
    "state_dict": RAW,
    "optimizer": {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-5}]},
    "args": argparse.Namespace(model="t2t_vit_14", lr=5e-4, mean=None, color_jitter=0.4),
    "version": 2,
    "state_dict_ema": EMA,
    "metric": 81.5,
}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in RAW.items()}


# ---- layouts ----


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("content", "entry", "expected"),
    [
        ({"state_dict_ema": OrderedDict(EMA)}, "state_dict_ema", EMA),  # T2T-ViT's releases
        (TRAINING, "state_dict_ema", EMA),  # timm
        ({"net": prefixed("module."), "acc": 98.3, "epoch": 59}, "net", RAW),  # the authors' transfer learning
        ({"model": RAW}, "model", RAW),  # DeiT's releases
        ({"model": RAW, "model_ema": EMA}, "model_ema", EMA),  # DeiT's training
        (OrderedDict(RAW), "", RAW),
        (prefixed("_orig_mod.module."), "", RAW),
    ],
)
def test_layouts(tmp_path: Path, content: dict[str, Any], entry: str, expected: dict[str, Any], legacy: bool):
    path = tmp_path / "weights.pth.tar"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    checkpoint = read_checkpoint(path)
    assert checkpoint.entry == entry
    assert checkpoint.is_ema == (expected is EMA)
    assert same(checkpoint.state_dict, expected)
    assert type(read_state_dict(str(path))) is dict


def test_raw_weights_on_request(tmp_path: Path):
    torch.save(TRAINING, tmp_path / "both.pth")
    checkpoint = read_checkpoint(tmp_path / "both.pth", use_ema=False)
    assert (checkpoint.entry, checkpoint.is_ema) == ("state_dict", False)
    assert same(checkpoint.state_dict, RAW)


def test_a_file_with_one_kind_of_weights_gives_that(tmp_path: Path):
    torch.save({"state_dict_ema": EMA}, tmp_path / "ema.pth")
    torch.save({"state_dict": RAW}, tmp_path / "raw.pth")
    assert read_checkpoint(tmp_path / "ema.pth", use_ema=False).is_ema
    assert not read_checkpoint(tmp_path / "raw.pth", use_ema=True).is_ema


def test_a_prefix_that_only_some_names_carry_stays(tmp_path: Path):
    mixed = {"module.a": torch.zeros(1), "b": torch.zeros(1)}
    torch.save(mixed, tmp_path / "mixed.pth")
    assert list(read_state_dict(tmp_path / "mixed.pth")) == ["module.a", "b"]


def test_safetensors(tmp_path: Path):
    safetensors.torch.save_file(prefixed("module."), tmp_path / "w.safetensors", metadata={"model": "t2t_vit_7"})
    checkpoint = read_checkpoint(tmp_path / "w.safetensors")
    assert checkpoint.state_dict.keys() == RAW.keys()
    assert all(torch.equal(checkpoint.state_dict[name], RAW[name]) for name in RAW)
    assert (checkpoint.entry, dict(checkpoint.metadata)) == ("", {"model": "t2t_vit_7"})


# ---- digests ----


@pytest.mark.parametrize("suffix", [".pth", ".pth.tar", ".safetensors"])
def test_what_is_saved_is_verified_when_it_is_read(tmp_path: Path, suffix: str):
    path = tmp_path / f"w{suffix}"
    save_checkpoint(RAW, path, metadata={"model": "m", "sha": "x"})
    checkpoint = read_checkpoint(path)
    assert (checkpoint.verified, dict(checkpoint.metadata)) == ("sha256", {"model": "m", "sha": "x"})
    content = path.read_bytes()
    for value in RAW.values():
        data = value.numpy().tobytes()
        path.write_bytes(content.replace(data, data[:-1] + bytes([data[-1] ^ 1])))
        with pytest.raises(ValueError, match=rf"w{suffix} is .*(head\.\w+|archive/data/\d) (is|are) not as saved"):
            read_checkpoint(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_tensor_that_was_changed_is_named(tmp_path: Path, suffix: str):
    """With checksums of the container that are right."""
    path = tmp_path / f"w{suffix}"
    save_checkpoint(RAW, path, metadata={"model": "m"})
    if suffix == ".pth":
        digests = zips.read_digests(path)
        torch.save({"state_dict": {**RAW, "head.bias": torch.zeros(2)}, "metadata": {"model": "m"}}, path)
        zips.add_digests(path, digests)
    else:
        with safetensors.safe_open(path, framework="pt") as file:
            texts = file.metadata()
        safetensors.torch.save_file({**RAW, "head.bias": torch.zeros(2)}, path, texts)
    with pytest.raises(ValueError, match=rf"w{suffix} is damaged .*\((state_dict/)?head\.bias is not as saved"):
        read_checkpoint(path)


def test_files_without_digests_are_read(tmp_path: Path):
    """Of earlier versions, and of others."""
    torch.save({"state_dict": RAW, "metadata": {"model": "m"}}, tmp_path / "w.pth")
    torch.save({"state_dict": RAW}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(RAW, tmp_path / "w.safetensors", {"model": "m"})
    for name, verified in (("w.pth", "crc32"), ("old.pth", ""), ("w.safetensors", "")):
        checkpoint = read_checkpoint(tmp_path / name)
        assert checkpoint.verified == verified
        assert same(checkpoint.state_dict, RAW) or name.endswith("safetensors")


# ---- what is refused ----


@pytest.mark.parametrize("name", ["none.pth", "none.safetensors", "folder"])
def test_missing_file(tmp_path: Path, name: str):
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileNotFoundError, match="no checkpoint file at") as error:
        read_state_dict(tmp_path / name)
    assert name in str(error.value)


def read_error(path: Path) -> str:
    """The message of the ValueError, which has to be one line that names the file."""
    with pytest.raises(ValueError, match=path.name) as error:
        read_state_dict(path)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_at_any_length(tmp_path: Path, kind: str):
    whole = tmp_path / ("whole.safetensors" if kind == "safetensors" else "whole.pth")
    if kind == "safetensors":
        safetensors.torch.save_file(RAW, whole)
    else:
        torch.save(TRAINING, whole, _use_new_zipfile_serialization=kind == "zip")
    content = whole.read_bytes()
    cut = whole.with_name("cut" + whole.suffix)
    for length in [*range(0, len(content), len(content) // 60), len(content) - 1]:
        cut.write_bytes(content[:length])
        message = read_error(cut)
        # A name of a class that was cut in two is no longer one of the allowed.
        assert "truncated, corrupt" in message or "would run code" in message


@pytest.mark.parametrize("name", ["text.pth", "text.safetensors"])
def test_not_a_checkpoint_at_all(tmp_path: Path, name: str):
    (tmp_path / name).write_text("<html>404</html>" * 100)
    assert "truncated, corrupt" in read_error(tmp_path / name)


class Malicious:
    """Unpickling this makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("how", ["zip", "legacy", *range(pickle.HIGHEST_PROTOCOL + 1)])
def test_a_file_that_would_run_code_is_refused_and_runs_none(tmp_path: Path, how: str | int):
    path, trace = tmp_path / "evil.pth", tmp_path / "trace"
    content = {"state_dict": {**RAW, "x": Malicious(trace)}}
    if isinstance(how, int):
        path.write_bytes(pickle.dumps({"state_dict": Malicious(trace)}, protocol=how))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    assert "would run code" in read_error(path)
    assert not trace.exists()


def test_a_whole_model_is_refused(tmp_path: Path):
    torch.save(torch.nn.Linear(2, 3), tmp_path / "model.pth")
    assert "would run code when loaded (torch.nn.modules.linear.Linear)" in read_error(tmp_path / "model.pth")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"epoch": 3, "weights": RAW}, "epoch, weights"),
        ({"state_dict": {"a": 1, "b": torch.zeros(1)}}, "(a)"),
        ({"state_dict": {}}, "empty"),
        ([torch.zeros(1)], "list"),
        (torch.zeros(1), "Tensor"),
    ],
)
def test_no_state_dict_in_it(tmp_path: Path, content: Any, named: str):
    torch.save(content, tmp_path / "other.pth")
    message = read_error(tmp_path / "other.pth")
    assert "no state dict" in message
    assert named in message


# ---- writing ----


@pytest.mark.parametrize("name", ["w.pth", "w.pth.tar", "w.pt", "w.bin", "w.safetensors"])
@pytest.mark.parametrize("metadata", [None, {"model": "t2t_vit_7", "top1": "71.7"}])
def test_there_and_back_bit_for_bit(tmp_path: Path, name: str, metadata: dict[str, str] | None):
    weights = {"a": torch.randn(3, 4).T, "b": torch.randn(5, dtype=torch.float64), "c": torch.ones(2).bfloat16()}
    save_checkpoint(weights, tmp_path / name, metadata=metadata)
    checkpoint = read_checkpoint(tmp_path / name)
    assert checkpoint.state_dict.keys() == weights.keys()
    for key, value in weights.items():
        assert checkpoint.state_dict[key].dtype == value.dtype
        assert torch.equal(checkpoint.state_dict[key], value)
    assert dict(checkpoint.metadata) == (metadata or {})
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_pytorch_files_have_the_layout_that_others_read(tmp_path: Path):
    model = torch.nn.Linear(3, 2)
    save_checkpoint(model, tmp_path / "w.pth")
    content = torch.load(tmp_path / "w.pth", weights_only=True)
    assert list(content) == ["state_dict"]
    torch.nn.Linear(3, 2).load_state_dict(content["state_dict"], strict=True)


def test_a_view_does_not_drag_its_storage_along(tmp_path: Path):
    save_checkpoint({"a": torch.zeros(1_000_000)[:1]}, tmp_path / "w.pth")
    assert (tmp_path / "w.pth").stat().st_size < 10_000


@pytest.mark.parametrize("name", ["w.npz", "w", "w.safetensors.gz"])
def test_unknown_suffix(tmp_path: Path, name: str):
    with pytest.raises(ValueError, match=r"\.safetensors, \.pth") as error:
        save_checkpoint(RAW, tmp_path / name)
    assert name in str(error.value)
    assert not list(tmp_path.iterdir())


def test_missing_folder(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"create the folder .*nowhere"):
        save_checkpoint(RAW, tmp_path / "nowhere" / "w.pth")


def test_a_crash_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "w.pth"
    save_checkpoint(RAW, path)

    def full_disk(content: object, file: Any) -> None:
        file.write(b"half a fi")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(ValueError, match=r"cannot write .*w\.pth \(no space left"):
        save_checkpoint(EMA, path)
    assert same(read_state_dict(path), RAW)
    assert [file.name for file in tmp_path.iterdir()] == ["w.pth"]


def test_a_full_disk_is_an_error_of_one_line_and_leaves_the_old_files(tmp_path: Path):
    paths = [tmp_path / "w.pth", tmp_path / "w.safetensors"]
    for path in paths:
        save_checkpoint(RAW, path)
    for path in paths:
        said = on_full_disk(
            "import torch\nfrom t2t_torch import save_checkpoint",
            f"save_checkpoint({{'a': torch.zeros(5000)}}, {str(path)!r})",
        )
        assert said.startswith(f"cannot write {path} (File too large): free space")
        assert said.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == paths
    assert all(read_state_dict(path).keys() == RAW.keys() for path in paths)
