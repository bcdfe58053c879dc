"""Weights in any format: PyTorch files, safetensors, Orbax folders; bit for bit, or nothing written."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import t2t_torch
from parity.__main__ import main
from parity.carry.random_weights import randomize
from t2t_common.io import cli
from t2t_config.weights.metadata import describe, to_text
from t2t_jax.checkpoint import load_model_state
from t2t_parity.weight_files import TORCH_SUFFIXES, carry_over, convert, load_into, saved_arguments, saved_metadata
from tests.support.golden import golden

SIZES = {"img_size": 32, "in_chans": 1, "num_classes": 3}
NAME = "t2t_vit_micro"
KNOWN = {
    "recipe": {"lr": 1e-3, "scale": [0.08, 1.0], "mean": None, "data": "digits"},
    "metrics": {"top1": 98.89},
    "parity": {"verdict": "EQUAL: every gate holds"},
    "mean": [0.25],
    "note": "as it is",
    "number": "7",
}
"""Metadata of every kind; a word, a text that looks like a number, and preprocessing that is not the model's own."""
ENDINGS = ("a.pth", "a.pth.tar", "a.safetensors", "folder")


def model(seed: int = 0, **changes: object) -> torch.nn.Module:
    torch.manual_seed(seed)  # the performers' features, which are frozen and so kept
    net = t2t_torch.create_model(NAME, **SIZES | changes)
    randomize(net, seed)
    return net


def weights(path: Path) -> dict[str, torch.Tensor]:
    net = model(seed=9)
    load_into(net, path, NAME, **SIZES)
    return net.state_dict()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.pth"
    t2t_torch.save_checkpoint(model(), path, metadata=to_text(KNOWN))
    return path


@pytest.mark.parametrize(("first", "second"), [*itertools.product(ENDINGS, ENDINGS)])
def test_any_format_to_any_other_and_back(tmp_path: Path, source: Path, first: str, second: str):
    (tmp_path / "then").mkdir()
    ledger = convert(source, tmp_path / first, NAME)
    convert(tmp_path / first, tmp_path / "then" / second, NAME)
    expected = model().state_dict()
    assert {entry.torch for entry in ledger} == set(expected)
    for key, value in weights(tmp_path / "then" / second).items():
        assert value.dtype == expected[key].dtype
        assert torch.equal(value, expected[key])
    assert saved_arguments(tmp_path / "then" / second) == SIZES
    assert saved_metadata(tmp_path / "then" / second) == describe(NAME, **SIZES) | KNOWN


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("ending", ["a.safetensors", "folder"])
def test_dtypes_are_kept(tmp_path: Path, dtype: torch.dtype, ending: str):
    t2t_torch.save_checkpoint(model().to(dtype), tmp_path / "source.pth")
    convert(tmp_path / "source.pth", tmp_path / ending, NAME)
    convert(tmp_path / ending, tmp_path / "back.pth", NAME)
    for key, value in weights(tmp_path / "back.pth").items():
        assert value.dtype == dtype
        assert torch.equal(value, model().to(dtype).state_dict()[key])


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_head_of_token_labeling_goes_along(tmp_path: Path, ending: str):
    source = model(aux_head=True)
    torch.save({"state_dict_ema": source.state_dict()}, tmp_path / "source.pth.tar")
    convert(tmp_path / "source.pth.tar", tmp_path / ending, NAME)
    assert saved_arguments(tmp_path / ending) == SIZES | {"aux_head": True}
    (tmp_path / "then").mkdir()
    convert(tmp_path / ending, tmp_path / "then" / "back.pth", NAME)
    back = t2t_torch.read_state_dict(tmp_path / "then" / "back.pth")
    assert back.keys() == source.state_dict().keys()
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in back.items())


def test_an_orbax_folder_names_its_model(tmp_path: Path, source: Path):
    convert(source, tmp_path / "folder", NAME)
    saved = load_model_state(tmp_path / "folder")
    assert saved.metadata["model"] == NAME
    np.testing.assert_array_equal(saved.arrays["head.kernel"], model().head.weight.detach().T)


def test_sizes_asked_for_win(tmp_path: Path):
    wide = t2t_torch.create_model(NAME, img_size=(32, 64), num_classes=3)
    t2t_torch.save_checkpoint(wide, tmp_path / "wide.pth")
    convert(tmp_path / "wide.pth", tmp_path / "folder", NAME, img_size=(32, 64))
    assert saved_arguments(tmp_path / "folder")["img_size"] == (32, 64)


def test_overrides_come_along(tmp_path: Path):
    """A scale of the attention leaves no trace in the shapes: only the metadata tell it."""
    own = t2t_torch.create_model(NAME, **SIZES, qk_scale=0.3)
    t2t_torch.save_pretrained(own, tmp_path / "hub")
    convert(tmp_path / "hub" / "model.safetensors", tmp_path / "folder", NAME)
    convert(tmp_path / "folder", tmp_path / "a.pth", NAME)
    assert saved_metadata(tmp_path / "a.pth")["overrides"] == {"qk_scale": 0.3}


@pytest.mark.parametrize("ema", [True, False])
def test_the_moving_average_is_preferred(tmp_path: Path, ema: bool):
    state = {"state_dict": model(0).state_dict(), "state_dict_ema": model(1).state_dict()}
    torch.save(state, tmp_path / "both.pth.tar")
    convert(tmp_path / "both.pth.tar", tmp_path / "folder", NAME, use_ema=ema)
    assert torch.equal(weights(tmp_path / "folder")["head.weight"], model(int(ema)).head.weight)


def test_the_authors_loader_finds_its_layout(tmp_path: Path):
    """Their `load_for_transfer_learning` takes the entry `state_dict`, with use_ema or without, and loads it strictly;
    today's `torch.load` reads it without allowances."""
    reference = golden("t2t_vit_7_img64")
    official = t2t_torch.create_model("t2t_vit_7", img_size=64, num_classes=reference.meta["num_classes"])
    t2t_torch.save_checkpoint(official, tmp_path / "source.safetensors")
    convert(tmp_path / "source.safetensors", tmp_path / "out.pth", "t2t_vit_7")
    content = torch.load(tmp_path / "out.pth", weights_only=True)
    assert "state_dict_ema" not in content
    found = {key: tuple(value.shape) for key, value in content["state_dict"].items()}
    assert list(found.items()) == reference.keys_and_shapes


# ---- the figures of the check ----


def test_models_that_differ_are_not_written_as_equal(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch):
    different = SimpleNamespace(passed=False, verdict="DIFFERENT: first divergence: blocks.0.attn")
    monkeypatch.setattr(sys.modules["parity.proof.check"], "check", lambda *args, **options: different)
    with pytest.raises(ValueError, match=r"do not compute the same .*first divergence: blocks\.0\.attn"):
        convert(source, tmp_path / "folder", NAME, check=True)
    assert nothing_else(tmp_path, "source.pth")


# ---- what goes wrong leaves nothing behind ----


def nothing_else(folder: Path, *names: str) -> bool:
    return sorted(path.name for path in folder.iterdir()) == sorted(names)


@pytest.mark.parametrize("ending", ENDINGS)
def test_weights_of_another_model_are_refused(tmp_path: Path, source: Path, ending: str):
    with pytest.raises(ValueError, match="t2t_vit_micro"):
        convert(source, tmp_path / ending, "t2t_vit_tiny")
    assert nothing_else(tmp_path, "source.pth")


def test_a_folder_of_another_model_is_refused(tmp_path: Path, source: Path):
    convert(source, tmp_path / "folder", NAME)
    with pytest.raises(ValueError, match=r"folder does not fit t2t_vit_tiny"):
        convert(tmp_path / "folder", tmp_path / "a.pth", "t2t_vit_tiny")
    assert nothing_else(tmp_path, "source.pth", "folder")


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_damaged_file_is_refused(tmp_path: Path, source: Path, ending: str):
    source.write_bytes(source.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"source\.pth"):
        convert(source, tmp_path / ending, NAME)
    assert nothing_else(tmp_path, "source.pth")


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        convert(tmp_path / "nowhere.pth", tmp_path / "a.safetensors", NAME)
    assert nothing_else(tmp_path)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_failed_write_keeps_the_old_file(tmp_path: Path, source: Path, ending: str, monkeypatch: pytest.MonkeyPatch):
    """The disk is full in the middle of writing."""
    target = tmp_path / ending
    convert(source, target, NAME)
    before = weights(target)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    for writer in ("torch.save", "safetensors.torch.save_file", "safetensors.torch.save"):
        monkeypatch.setattr(writer, full)
    monkeypatch.setattr("t2t_jax.checkpoint.ocp.save_checkpointables_async", full)
    with pytest.raises((OSError, ValueError), match="No space left"):
        convert(source, target, NAME)
    assert all(torch.equal(value, before[key]) for key, value in weights(target).items())
    assert nothing_else(tmp_path, "source.pth", ending)


KILLED = """
import resource, signal, sys
from t2t_parity.weight_files import convert
import orbax.checkpoint.experimental.v1
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
convert(sys.argv[1], sys.argv[2], sys.argv[3])
"""
"""The kernel kills the process when a file of it grows beyond 20 kB."""


@pytest.mark.parametrize("ending", ["a.pth", "a.safetensors", "folder"])
def test_a_process_that_is_killed_while_it_writes_leaves_the_old_file(tmp_path: Path, source: Path, ending: str):
    target = tmp_path / ending
    convert(source, target, NAME)
    before = weights(target)
    t2t_torch.save_checkpoint(model(seed=1), source)
    command = [sys.executable, "-c", KILLED, str(source), str(target), NAME]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGXFSZ, done.stderr
    assert all(torch.equal(value, before[key]) for key, value in weights(target).items())
    convert(source, target, NAME)
    assert not torch.equal(weights(target)["head.weight"], before["head.weight"])


@pytest.mark.parametrize("ending", ["b.pth", "folder"])
def test_a_classifier_that_would_be_random_is_refused(tmp_path: Path, source: Path, ending: str):
    with pytest.raises(ValueError, match=r"head\.weight, head\.bias .* num_classes of its own"):
        convert(source, tmp_path / ending, NAME, num_classes=7)
    assert not (tmp_path / ending).exists()
    convert(source, tmp_path / ending, NAME, num_classes=0)
    assert not any(entry.torch.startswith("head") for entry in convert(tmp_path / ending, tmp_path / "c.pth", NAME))


# ---- "bit for bit" is said of what is ----


def command(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    """Exit code, output and errors of `python -m parity convert`, without the check."""
    code = cli.run(main, ["convert", *map(str, args), "--no-check"])
    out, err = capsys.readouterr()
    return code, " ".join(out.split()), err


@pytest.mark.parametrize("ending", ["a.safetensors", "folder"])
@pytest.mark.parametrize("shape", [(), (0, 64), (0,)])
def test_a_classifier_that_is_none_is_not_dropped(
    tmp_path: Path, ending: str, shape: tuple[int, ...], capsys: pytest.CaptureFixture[str]
):
    state = model().state_dict() | {"head.weight": torch.zeros(shape), "head.bias": torch.zeros(shape[:1])}
    torch.save(state, tmp_path / "w.pth")
    code, out, err = command(capsys, tmp_path / "w.pth", tmp_path / ending, "--model", NAME)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert f"head.weight {shape}" in err
    assert nothing_else(tmp_path, "w.pth")
    with pytest.raises(ValueError, match=r"has head\.weight .*, which is no classifier"):  # what `check` reads by
        load_into(model(num_classes=0), tmp_path / "w.pth", NAME)


@pytest.mark.parametrize("name", ["head.weight", "pos_embed", "blocks.0.norm1.bias"])
@pytest.mark.parametrize("kind", ["complex64", "int32", "uint8", "bool"])
def test_numbers_that_would_be_changed_are_refused(
    tmp_path: Path, name: str, kind: str, capsys: pytest.CaptureFixture[str]
):
    state = model().state_dict()
    torch.save(state | {name: state[name].to(getattr(torch, kind))}, tmp_path / "w.pth")
    code, out, err = command(capsys, tmp_path / "w.pth", tmp_path / "a.safetensors", "--model", NAME)
    assert (code, out) == (2, "")
    assert f"{name} is {kind}" in err
    assert nothing_else(tmp_path, "w.pth")


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_tensor_keeps_its_own_type(tmp_path: Path, ending: str, capsys: pytest.CaptureFixture[str]):
    kinds = (torch.float16, torch.float32, torch.bfloat16, torch.float64)
    state = {key: x.to(kinds[i % 4]) for i, (key, x) in enumerate(model().state_dict().items())}
    torch.save(state, tmp_path / "w.pth")
    done = carry_over(tmp_path / "w.pth", tmp_path / ending, NAME)
    assert (done.model, done.changes) == (NAME, ())
    assert "bit for bit" in command(capsys, tmp_path / ending, tmp_path / "back.pth")[1]
    back = t2t_torch.read_state_dict(tmp_path / "back.pth")
    assert back.keys() == state.keys()
    for key, value in back.items():
        assert value.dtype == state[key].dtype
        assert torch.equal(value, state[key])


def test_what_was_changed_as_asked_is_told(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]):
    code, out, _ = command(capsys, source, tmp_path / "a.pth", "--model", NAME, "--img-size", 64, "--num-classes", 0)
    assert code == 0
    assert "bit for bit" not in out
    assert f"not as in {source}: pos_embed 2x2 -> 4x4 (bicubic); head.weight left out; head.bias left out" in out


def test_figures_for_other_channels_do_not_go_along(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    known = to_text(KNOWN | {"class_names": ["a", "b", "c"], "std": [0.5]})
    t2t_torch.save_checkpoint(model(), tmp_path / "w.pth", metadata=known)
    args = (tmp_path / "w.pth", tmp_path / "a.pth", "--model", NAME, "--in-chans", 3, "--num-classes", 0)
    code, _, err = command(capsys, *args)
    assert (code, err.count("mean, std, class_names of ")) == (0, 1)
    found = saved_metadata(tmp_path / "a.pth")
    assert (len(found["mean"]), len(found["std"]), found.get("class_names")) == (3, 3, None)
    assert found["note"] == KNOWN["note"]


def test_what_was_taken_off_and_which_weights_were_taken_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    wrapped = {f"model.{key}": value for key, value in model().state_dict().items()}
    torch.save({"state_dict_ema": wrapped | {"n_averaged": torch.tensor(3)}}, tmp_path / "w.pth")
    code, out, err = command(capsys, tmp_path / "w.pth", tmp_path / "a.pth", "--model", NAME)
    assert (code, "bit for bit" in out) == (0, True)
    assert "the moving average" in err
    assert "prefix 'model.'" in err
    assert "no weights: n_averaged" in err


def test_the_source_tells_its_model(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]):
    code, _, err = command(capsys, source, tmp_path / "a.pth")
    assert code == 2
    assert err == f"error: {source} does not name its model: add --model NAME\n"
    convert(source, tmp_path / "folder", NAME)
    for first, second in (("folder", "a.safetensors"), ("a.safetensors", "b.pth"), ("b.pth", "again")):
        code, out, _ = command(capsys, tmp_path / first, tmp_path / second)
        assert code == 0
        assert f"tensors of {NAME}, bit for bit" in out
    t2t_torch.save_pretrained(model(), tmp_path / "hub")
    assert command(capsys, tmp_path / "hub", tmp_path / "c.pth")[0] == 0


def test_another_model_than_the_source_says_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Models of the same shapes differ in scales, or in the epsilon of their norms. An alias is no other model."""
    sizes = {"img_size": 32, "num_classes": 2, "depth": 1}
    vit = t2t_torch.create_model("vit_deit_tiny_patch16_224", **sizes)
    t2t_torch.save_pretrained(vit, tmp_path / "hub")
    code, _, err = command(capsys, tmp_path / "hub", tmp_path / "a.pth", "--model", "deit_tiny_patch16_224")
    assert (code, err) == (0, "")
    t2t_torch.save_checkpoint(model(), tmp_path / "w.pth", metadata={"model": "t2t_vit_7"})
    code, _, err = command(capsys, tmp_path / "w.pth", tmp_path / "a.pth", "--model", NAME)
    assert (code, err) == (0, f"{tmp_path / 'w.pth'} says that it is t2t_vit_7; it is taken as {NAME}, as asked\n")


@pytest.mark.parametrize(
    "name", ["a.onnx", "a.safetensor", "a.PTH", "a.npz", "a.pdparams", "a.tar.gz", "a.pt2", "a.v2"]
)
def test_endings_of_no_format_are_refused_with_the_known_ones(
    tmp_path: Path, source: Path, name: str, capsys: pytest.CaptureFixture[str]
):
    code, out, err = command(capsys, source, tmp_path / name, "--model", NAME)
    assert (code, out) == (2, "")
    assert all(suffix in err for suffix in TORCH_SUFFIXES)
    assert nothing_else(tmp_path, "source.pth")


@pytest.mark.parametrize("name", ["run", "t2t_81.5", "a.orbax", "v1.2", ".hidden"])
def test_names_of_folders(tmp_path: Path, source: Path, name: str):
    convert(source, tmp_path / name, NAME)
    assert (tmp_path / name / "_CHECKPOINT_METADATA").is_file()
