"""`python -m parity` with our models: what it prints, what it writes, and with which exit code it ends."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import t2t_torch
from parity.__main__ import main
from parity.carry.random_weights import randomize
from t2t_common.io import cli
from t2t_config.weights.metadata import describe_model, to_text
from t2t_parity.selftest import Outcome, Selftest
from t2t_parity.survey import Figure
from t2t_parity.weight_files import saved_metadata
from tests.t2t_parity.test_survey import figure

SMALL = ["--img-size", "32", "--num-classes", "10", "--level", "forward"]
MICRO = ["check", "t2t_vit_micro", *SMALL]


def run(*args: object) -> int:
    return cli.run(main, [str(arg) for arg in args])


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    model = t2t_torch.create_model("t2t_vit_micro", img_size=32, num_classes=10)
    randomize(model)
    t2t_torch.save_checkpoint(model, tmp_path / "m.pth")
    return tmp_path / "m.pth"


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err + captured.out
    return captured.err


# ---- check ----


def test_equal_models_end_with_zero_and_a_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(*MICRO, "--json", tmp_path / "report.json") == 0
    assert "EQUAL" in capsys.readouterr().out
    payload = json.loads((tmp_path / "report.json").read_text())
    assert payload["passed"] is True
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_different_models_end_with_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    from t2t_jax.models.layers import GELU

    monkeypatch.setattr(GELU, "__call__", lambda self, x: x)
    assert run(*MICRO, "--json", tmp_path / "report.json") == 1
    assert "DIFFERENT" in capsys.readouterr().out
    payload = json.loads((tmp_path / "report.json").read_text())
    assert payload["passed"] is False
    assert payload["first_divergence"] == "tokens_to_token.attention1.mlp.1"


def test_weights_from_a_file_bring_their_sizes(checkpoint: Path, capsys: pytest.CaptureFixture[str]):
    assert run("check", "t2t_vit_micro", "--checkpoint", checkpoint, "--level", "forward") == 0
    assert "EQUAL" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["check", "t2t_vit_13"], "t2t_vit_14"),
        (["check", "t2t_vit_micro", "--checkpoint", "nowhere.pth"], "nowhere.pth"),
        ([*MICRO, "--json", "no/such/folder/r.json"], "no/such/folder"),
        (["check", "t2t_vit_micro", "--img-size", "2"], "too small"),
        (["check", "t2t_vit_micro", "--img-size", "1", "2", "3"], "img-size"),
        (["check", "t2t_vit_micro", "--level", "all"], "level"),
        (["check"], "missing: NAME"),
        (["check", "t2t_vit_micro", "--fresh", "--checkpoint", "a.pth"], "--fresh takes new weights"),
        (["check", "t2t_vit_micro", "--batch", "0"], "--batch: must be positive, got 0"),
        (["prove", "t2t_vit_micro"], "prove"),
        (["convert", "nowhere.pth", "a.safetensors", "--model", "t2t_vit_micro"], "nowhere.pth"),
    ],
)
def test_a_call_that_makes_no_sense_ends_with_two_and_one_line(
    args: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert run(*args) == 2
    assert says in complaint(capsys)
    assert not list(tmp_path.iterdir())


def test_without_a_command_it_lists_them(capsys: pytest.CaptureFixture[str]):
    assert run() == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert {"check", "convert", "doctor"} <= set(printed.out.split())


def test_a_truncated_checkpoint(checkpoint: Path, capsys: pytest.CaptureFixture[str]):
    checkpoint.write_bytes(checkpoint.read_bytes()[:500])
    assert run("check", "t2t_vit_micro", "--checkpoint", checkpoint) == 2
    assert "m.pth" in complaint(capsys)


def test_what_a_checkpoint_says_of_its_model_counts(tmp_path: Path):
    model = t2t_torch.create_model("t2t_vit_micro", img_size=32, num_classes=3, depth=1, qk_scale=0.3)
    t2t_torch.save_checkpoint(model, tmp_path / "w.pth", metadata=to_text(describe_model(model)))
    json_file = tmp_path / "report.json"
    options = ("--checkpoint", tmp_path / "w.pth", "--level", "forward", "--json", json_file)
    assert run("check", "t2t_vit_micro", *options) == 0
    layers = {layer["name"] for layer in json.loads(json_file.read_text())["layers"]}
    assert "blocks.0" in layers
    assert "blocks.1" not in layers


def test_weights_of_another_model(checkpoint: Path, capsys: pytest.CaptureFixture[str]):
    assert run("check", "t2t_vit_tiny", "--checkpoint", checkpoint) == 2
    assert "t2t_vit_micro" in complaint(capsys)  # what the file looks like


def test_a_json_path_that_is_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(*MICRO, "--json", tmp_path) == 2
    assert str(tmp_path) in complaint(capsys)
    assert not list(tmp_path.iterdir())


# ---- convert ----


def test_convert_and_back(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]):
    for source, target in (("m.pth", "folder"), ("folder", "m.safetensors"), ("m.safetensors", "back.pth.tar")):
        check = () if target == "folder" else ("--no-check",)
        assert run("convert", tmp_path / source, tmp_path / target, "--model", "t2t_vit_micro", *check) == 0
        assert f"{target}: " in capsys.readouterr().out.replace("\n", "")
    ours, theirs = (t2t_torch.read_state_dict(tmp_path / name) for name in ("m.pth", "back.pth.tar"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    figures = saved_metadata(tmp_path / "back.pth.tar")["parity"]
    assert figures["verdict"].startswith("EQUAL: ")
    assert 0 < figures["logits, float64"] < 1e-13 < figures["worst layer, float32"] < 1e-5


BAD = {
    "malicious": (".pth", "would run code"),
    "malicious pickle": (".pdparams", "would run code"),
    "truncated": (".pth", "truncated"),
    "truncated safetensors": (".safetensors", "truncated"),
    "zip bomb": (".pth.tar", "unpacks to"),
    "half the keys": (".pth", "missing"),
    "wrong variant": (".pth", "looks like t2t_vit_tiny"),
    "foreign names": (".pth", "like none of list_models()"),
}


class Malicious:
    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (self.folder,)


def write_bad(kind: str, path: Path, trace: Path) -> None:
    name = "t2t_vit_tiny" if kind == "wrong variant" else "t2t_vit_micro"
    state = t2t_torch.create_model(name, img_size=32, num_classes=10).state_dict()
    if kind == "malicious":
        torch.save({"state_dict": state, "args": Malicious(trace)}, path)
    elif kind == "malicious pickle":
        path.write_bytes(pickle.dumps({"head.weight": Malicious(trace)}))
    elif kind == "half the keys":
        torch.save(dict(list(state.items())[::2]), path)
    elif kind == "foreign names":
        torch.save({f"backbone.{name}": value for name, value in state.items()}, path)
    else:
        t2t_torch.save_checkpoint(state, path)
    if kind.startswith("truncated"):
        path.write_bytes(path.read_bytes()[:-200])
    if kind == "zip bomb":
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("bomb", bytes(64 << 20))


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_refused_in_one_line_and_nothing_is_written(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
):
    suffix, complains_of = BAD[kind]
    source = tmp_path / f"bad{suffix}"
    write_bad(kind, source, tmp_path / "trace")
    for target in ("out.pth", "out.safetensors", "folder"):
        assert run("convert", source, tmp_path / target, "--model", "t2t_vit_micro") == 2
        line = complaint(capsys)
        assert source.name in line
        assert complains_of in line
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_convert_of_another_models_weights_writes_nothing(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
):
    assert run("convert", checkpoint, tmp_path / "folder", "--model", "t2t_vit_tiny") == 2
    assert "t2t_vit_micro" in complaint(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["m.pth"]


# ---- selftest and survey ----


@pytest.mark.parametrize("caught", [True, False])
def test_selftest_ends_by_what_was_caught(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, caught: bool
):
    judged = Outcome("kernel rotated", "conversion", caught, 1e9, None, None, None, None, 1.0)
    found = Selftest((judged,), (), correct_runs=1, seconds=1.0)
    asked: list[dict[str, object]] = []

    def selftest(**options: object) -> Selftest:
        asked.append(options)
        return found

    monkeypatch.setattr("t2t_parity.selftest.run", selftest)
    assert run("selftest", "--seeds", 3, "--json", tmp_path / "outcome.json") == (0 if caught else 1)
    assert asked[0]["seeds"] == 3
    assert f"{int(caught)} of 1 mutations caught" in capsys.readouterr().out
    assert (tmp_path / "outcome.json").read_text().strip() == found.to_json()
    assert run("selftest", "--json", tmp_path / "none" / "outcome.json") == 2
    assert len(asked) == 1  # before anything is run


def test_a_survey_writes_each_model_as_it_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    page = tmp_path / "parity.md"

    def survey(names: tuple[str, ...], **options: object) -> Iterator[Figure]:
        yield figure("t2t_vit_7")
        assert "`t2t_vit_7`" in page.read_text()
        yield figure("t2t_vit_10", passed="t2t_vit_24" not in names)

    monkeypatch.setattr("t2t_parity.survey.survey", survey)
    assert run("survey", "--out", page) == 1  # of all models
    assert run("survey", "--out", page, "--names", "t2t_vit_7", "t2t_vit_10") == 0
    said = capsys.readouterr().out
    assert "t2t_vit_10: FAILED, 1 s" in said
    assert f"2 models written to {page}" in said


# ---- the process ----


def test_as_a_process():
    def call(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "parity", *args], capture_output=True, text=True, check=False)

    shown = call("--help")
    assert shown.returncode == 0
    assert all(command in shown.stdout for command in ("check", "convert", "doctor"))
    wrong = call("check", "t2t_vit_13")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: unknown model 't2t_vit_13': did you mean ")
    assert wrong.stderr.count("\n") == 1
