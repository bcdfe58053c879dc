"""`python -m t2t_jax.evaluate` and `python -m t2t_torch.evaluate`: labels and outputs are brought together by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

import t2t_jax.evaluate
import t2t_torch
import t2t_torch.evaluate
from t2t_common.data.folders import is_held_out
from t2t_common.io import cli
from t2t_config.weights.metadata import describe_model, to_text

Command = Callable[[Sequence[str]], int]
COMMANDS: dict[str, Command] = {"jax": t2t_jax.evaluate.main, "torch": t2t_torch.evaluate.main}
NAMES = sorted(map(str, range(14)))
"""0, 1, 10, 11 ...: the order of class folders as runs of old had it."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that takes everything for class "2", by NAMES its seventh output."""
    model = t2t_torch.create_model("t2t_vit_micro", img_size=16, in_chans=1, num_classes=len(NAMES))
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.arange(len(NAMES)) == NAMES.index("2"))
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    t2t_torch.save_checkpoint(model, path, metadata=to_text(describe_model(model, {"class_names": NAMES})))
    t2t_torch.save_checkpoint(model, path.with_name("bare.pth"))
    return path


def images(root: Path, names: Sequence[str], shown: str) -> Path:
    """14 images of the class `shown`, and a folder for each of `names`."""
    for name in names:
        (root / "val" / name).mkdir(parents=True)
    for number in range(14):
        Image.new("L", (16, 16), number).save(root / "val" / shown / f"{number}.png")
    return root


@pytest.mark.parametrize("command", COMMANDS)
def test_classes_are_mapped_by_name(command: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """By number, class "2" would be the third output: 0 of 14."""
    data = images(tmp_path, [str(number) for number in range(14)], "2")
    args = ["--checkpoint", str(weights), "--data", str(data), "--per-class"]
    assert cli.run(COMMANDS[command], args) == 0
    printed = capsys.readouterr()
    assert "top-1 100.00 % (14 of 14)" in printed.out
    assert "100.00 %      14  2" in printed.out
    assert "14 classes in natural order: 0 0, 1 1, 2 2, 3 3" in printed.err
    assert "classes are mapped by name: 0 is output 0, 13 is output 5" in printed.err
    assert "no images in 13 class folders of" in printed.err


@pytest.mark.parametrize("command", COMMANDS)
def test_other_classes_are_refused(command: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = images(tmp_path, ["cat", "dog"], "dog")
    assert cli.run(COMMANDS[command], ["--checkpoint", str(weights), "--data", str(data)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"14 of the weights: {', '.join(NAMES)}; 2 of the data: cat, dog" in line


@pytest.mark.parametrize("command", COMMANDS)
def test_weights_without_names(command: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """By the user's list, else by number, which is told."""
    data = images(tmp_path / "data", [str(number) for number in range(14)], "2")
    model = ["--model", "t2t_vit_micro", "--mean", "0", "--std", "1", "--data", str(data)]
    args = ["--checkpoint", str(weights.with_name("bare.pth")), *model]
    assert cli.run(COMMANDS[command], args) == 0
    printed = capsys.readouterr()
    assert "top-1 0.00 % (0 of 14)" in printed.out
    assert "the weights do not name their classes: label N of the data is used as output N" in printed.err
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    assert cli.run(COMMANDS[command], [*args, "--classes", str(tmp_path / "names.txt")]) == 0
    assert "top-1 100.00 % (14 of 14)" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_class_folders_are_split_as_in_training(
    command: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    names = [f"{number}.png" for number in range(14)]
    held_out = sum(is_held_out(f"2/{name}", 0.3) for name in names)
    assert 0 < held_out < 14
    data = images(tmp_path, NAMES, "2") / "val"
    model = t2t_torch.create_model("t2t_vit_micro", img_size=16, in_chans=1, num_classes=len(NAMES))
    t2t_torch.load_checkpoint(model, weights)
    path = tmp_path / "w.safetensors"
    facts = {"class_names": NAMES, "recipe": {"val_fraction": 0.3}}
    t2t_torch.save_checkpoint(model, path, metadata=to_text(describe_model(model, facts)))
    for more, count in ((), held_out), (("--val-fraction", "0"), 14), (("--val-fraction", "0.3"), held_out):
        args = ["--checkpoint", str(path), "--data", str(data), *more]
        assert cli.run(COMMANDS[command], args) == 0
        printed = capsys.readouterr()
        assert f"top-1 100.00 % ({count} of {count})" in printed.out
        assert ("evaluating the images held out in training" in printed.err) == (not more)
    assert cli.run(COMMANDS[command], ["--checkpoint", str(path), "--data", str(tmp_path)]) == 0  # has a folder val
    assert "(14 of 14)" in capsys.readouterr().out
    assert cli.run(COMMANDS[command], ["--checkpoint", str(path), "--data", str(data), "--val-fraction", "2"]) == 2
    assert "a fraction above 0 and below 1" in capsys.readouterr().err
