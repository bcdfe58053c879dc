"""What is said where something that parity needs is not installed."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from parity.requirements import NEEDS, explanation, missing, version
from tests.support.clean_env import ROOT, CleanEnv

PROJECT = tomllib.loads((ROOT / "packaging/parity/pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> CleanEnv:
    """An environment with nothing in it."""
    return CleanEnv(tmp_path_factory.mktemp("plain") / "env", outer=False)


def test_a_module_that_is_needed_is_explained_and_any_other_error_stays():
    error = ModuleNotFoundError("No module named 'flax'", name="flax.nnx")
    found = explanation(error)
    assert not isinstance(found, ModuleNotFoundError)
    assert found.name == "flax"
    assert str(found) == 'parity needs what is not installed (flax): pip install "flax>=0.12.8"'
    other = ModuleNotFoundError("No module named 'mine'", name="mine")
    assert explanation(other) is other


def test_they_are_the_dependencies_of_the_distribution():
    assert list(NEEDS.values()) == PROJECT["dependencies"]
    assert all(re.fullmatch(rf"{module}>=[\d.]+", requirement) for module, requirement in NEEDS.items())
    assert missing() == []
    assert version() == PROJECT["version"]


@pytest.mark.parametrize("command", [("doctor",), ("check", "x"), ("convert", "a", "b")], ids=" ".join)
def test_a_command_says_what_to_install(command: tuple[str, ...], plain: CleanEnv, tmp_path: Path):
    variables = {"PYTHONPATH": str(ROOT)}
    done = plain.run(plain.bin / "python", "-m", "parity", *command, cwd=tmp_path, check=False, variables=variables)
    assert (done.returncode, done.stdout) == (2, "")
    wanted = " ".join(f'"{requirement}"' for requirement in NEEDS.values())
    assert done.stderr == f"error: parity needs what is not installed ({', '.join(NEEDS)}): pip install {wanted}\n"


def test_help_and_version_need_nothing(plain: CleanEnv, tmp_path: Path):
    variables = {"PYTHONPATH": str(ROOT)}
    done = plain.run(plain.bin / "python", "-m", "parity", "--help", cwd=tmp_path, variables=variables)
    assert "usage: python -m parity" in done.stdout
    assert done.stderr == ""
    done = plain.run(plain.bin / "python", "-m", "parity", "--version", cwd=tmp_path, variables=variables)
    assert done.stdout == f"torch-jax-parity {PROJECT['version']}\n"


def test_an_exported_name_says_what_to_install(plain: CleanEnv, tmp_path: Path):
    for code in ("import parity; parity.check", "from parity import check"):
        command = (plain.bin / "python", "-c", code)
        done = plain.run(*command, cwd=tmp_path, check=False, variables={"PYTHONPATH": str(ROOT)})
        assert "ModuleNotFoundError" not in done.stderr
        assert done.stderr.splitlines()[-1].startswith("ImportError: parity needs what is not installed (numpy, torch,")
