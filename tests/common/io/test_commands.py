"""Lists of commands, and scripts that run them."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from t2t_common.io import cli, commands
from tests.support.clean_env import ROOT
from tests.test_command_lines import LISTS, programs

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_every_command_is_listed_and_has_a_script():
    found = [name for name in programs() if name not in LISTS and not name.startswith("t2t_common.")]
    assert {f"{package}.{name}" for package, names in commands.COMMANDS.items() for name in names} == {
        name for name in found if name != "parity"
    }
    assert set(commands.SCRIPTS.values()) == set(found)


def test_the_scripts_are_those_that_pip_installs():
    assert PROJECT["scripts"] == dict.fromkeys(commands.SCRIPTS, "t2t_common.io.commands:main")


@pytest.mark.parametrize("package", sorted(LISTS))
def test_a_package_lists_its_commands(package: str, capsys: pytest.CaptureFixture[str]):
    for args in ([], ["--help"]):
        assert cli.run(lambda args: commands.choose(package, args), args) == cli.OK
        printed = capsys.readouterr()
        assert printed.err == ""
        assert printed.out.startswith(f"usage: python -m {package} COMMAND")
        assert set(commands.COMMANDS[package]) <= {line.split()[0] for line in printed.out.splitlines() if line.strip()}


def test_a_command_that_is_not_there(capsys: pytest.CaptureFixture[str]):
    assert cli.run(lambda args: commands.choose("t2t_jax", args), ["trane"]) == cli.MISUSED
    assert "t2t_jax has no command 'trane': choose one of train," in capsys.readouterr().err


def test_a_command_is_called_by_its_script_or_by_its_package(tmp_path: Path):
    """With the name that the user wrote in what it says."""
    script = tmp_path / "t2t-torch-predict"
    script.write_text("from t2t_common.io.commands import main\nmain()\n")
    for command, name in (
        ([str(script), "--tap", "3"], "t2t-torch-predict"),
        (["-m", "t2t_torch", "predict", "--tap", "3"], "python -m t2t_torch.predict"),
    ):
        environ = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin"}
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
        )
        assert done.returncode == cli.MISUSED
        assert done.stderr == f"error: unknown option --tap: did you mean --top? (see {name} --help)\n"
