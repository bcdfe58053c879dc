"""Commands and named models of other packages, by entry points; and functions named on the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from parity.commands import installed, process
from parity.commands.dispatch import main
from tests.support.clean_env import ROOT

MINE = '''
import numpy as np
import torch
from flax import nnx
import parity

def layer_norm(epsilon=1e-5):
    torch_model, jax_model = torch.nn.LayerNorm(8), nnx.LayerNorm(8, epsilon=epsilon, rngs=nnx.Rngs(0))
    parity.torch_to_jax(torch_model, jax_model)
    options = {"gates": parity.Gates(f64=2e-13)}
    return parity.Pair(torch_model, jax_model, np.random.RandomState(0).standard_normal((4, 8)), options)

def twice():
    pair = layer_norm()
    return parity.Pair(pair.torch_model, pair.jax_model, pair.inputs, {"level": "train"})

def wrong():
    return layer_norm(1e-6)

def nothing():
    return None

class Family:
    def names(self):
        return ["norm_a", "norm_b"]

    def add_options(self, parser):
        parser.add_argument("--shift", type=float, default=0.0, help="Added to the inputs.")

    def pair(self, name, options):
        pair = layer_norm()
        return parity.Pair(pair.torch_model, pair.jax_model, pair.inputs + options.shift)

FAMILY = Family()

def hello(args, prog):
    """Say hello."""
    print(prog, *args)
    return 1
'''
ENTRY_POINTS = """
[parity.commands]
hello = mine:hello

[parity.models]
my_norm = mine:layer_norm
family = mine:FAMILY
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that is installed, with entry points."""
    info = tmp_path / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path


def run(*args: object) -> int:
    return process.run(main, [str(arg) for arg in args])


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_a_command_of_a_package_is_listed_and_run(mine: Path, capsys: pytest.CaptureFixture[str]):
    assert run("--help") == 0
    listed = capsys.readouterr().out
    assert "  hello     Say hello.\n" in listed
    assert "  convert   " in listed  # of this repository, though it may not be installed
    assert run("hello", "you") == 1
    assert capsys.readouterr().out == "python -m parity hello you\n"
    assert run("helo") == 2
    assert "no command 'helo': did you mean hello?" in complaint(capsys)


def test_a_model_of_a_package_has_a_name(mine: Path, capsys: pytest.CaptureFixture[str]):
    assert run("check", "my_norm", "--level", "forward", "--json", mine / "a.json") == 0
    assert "EQUAL" in capsys.readouterr().out
    saved = json.loads((mine / "a.json").read_text())
    assert saved["settings"]["name"] == "my_norm"
    assert 2e-13 in {row["gate"] for row in saved["rows"]}
    assert run("check", "my_norm", "--shift", "3") == 2  # of other models
    assert "unknown option --shift" in complaint(capsys)
    assert run("check", "my_norn") == 2
    assert "no installed package has a model 'my_norn': did you mean my_norm?" in complaint(capsys)


def test_models_have_options_of_their_own(mine: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        run("check", "norm_b", "--help")
    assert "--shift" in capsys.readouterr().out
    assert run("check", "--level", "forward", "--shift", "3", "norm_b") == 0
    assert "EQUAL" in capsys.readouterr().out
    assert run("power", "norm_b", "--level", "forward", "--shift", "100", "--json", mine / "power.json") == 0
    said = capsys.readouterr().out
    assert "show with random weights" in said
    assert "whose mean is far from 0" not in said  # it is
    assert json.loads((mine / "power.json").read_text())


def test_a_function_needs_no_name(mine: Path, capsys: pytest.CaptureFixture[str]):
    assert run("check", "mine:layer_norm", "--level", "forward") == 0
    assert run("check", "mine:wrong", "--level", "forward") == 1
    assert "layer_norm: eps 1e-05 -> 1e-06" in capsys.readouterr().out
    assert run("check", "mine:wrong", "--level", "forward", "--reference", "jax") == 1
    assert "PyTorch has eps 1e-05 where the reference has 1e-06" in capsys.readouterr().out
    assert run("check", "mine:wrong", "--reference", "flax") == 2
    assert "--reference: 'flax' is not one of torch, jax" in complaint(capsys)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("mine:nobody", "mine:nobody: mine has no function nobody"),
        ("yours:pair", "yours:pair: there is no module yours"),
        ("mine.deeper:pair", "mine.deeper:pair: there is no module mine.deeper"),
        ("mine:FAMILY", "mine:FAMILY is Family in place of a function that returns a parity.Pair"),
        ("mine:twice", "the parity.Pair of mine:twice sets level, as the command does: leave it out"),
        ("mine:nothing", "mine:nothing returned NoneType in place of a parity.Pair"),
    ],
)
def test_a_function_that_makes_no_sense(mine: Path, name: str, says: str, capsys: pytest.CaptureFixture[str]):
    assert run("check", name) == 2
    assert says in complaint(capsys)


def test_an_entry_point_that_cannot_be_loaded_is_named(mine: Path, capsys: pytest.CaptureFixture[str]):
    points = "[parity.models]\nold = gone:pair\n[parity.commands]\nmore = gone:main\n"
    (mine / "mine-1.0.dist-info/entry_points.txt").write_text(points)
    assert run("check", "my_norm") == 2
    assert "cannot load 'old' of the entry points 'parity.models', gone:pair" in complaint(capsys)
    assert run("more") == 2
    assert "cannot load 'more' of the entry points 'parity.commands', gone:main" in complaint(capsys)
    assert run("--help") == 0
    assert "  more      (cannot load 'more' of" in capsys.readouterr().out


def test_a_command_of_parity_is_not_replaced(mine: Path, capsys: pytest.CaptureFixture[str]):
    (mine / "mine-1.0.dist-info/entry_points.txt").write_text("[parity.commands]\nreport = mine:hello\n")
    assert run("report", mine / "none.json") == 2
    assert "no report at" in complaint(capsys)


def test_a_checkout_needs_no_installation():
    """Its entry points are read from pyproject.toml: an editable installation keeps those that it was made with."""
    assert [point.value for point in installed._of_checkout("parity.models")] == ["t2t_parity.models"]
    assert {point.name for point in installed._of_checkout("parity.commands")} == {
        "convert",
        "train",
        "selftest",
        "survey",
    }
    assert installed._of_checkout("parity.nothing") == []


def test_help_imports_no_framework(mine: Path):
    """Which is what makes it fast: 0.14 s of CPU time, where PyTorch and JAX take seconds."""
    code = (
        "import sys; from parity.__main__ import main; assert main(['--help']) == 0\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & set(sys.argv[1:])))"
    )
    slow = ["torch", "jax", "jaxlib", "flax", "optax", "orbax", "numpy", "PIL", "rich", "tyro"]
    done = subprocess.run([sys.executable, "-c", code, *slow], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "survey" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
