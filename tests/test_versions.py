"""The oldest and the newest versions: what the files that pin them mean, and the Python that the newest need."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.support.clean_env import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PARITY = tomllib.loads((ROOT / "packaging/parity/pyproject.toml").read_text())["project"]
NOT_ON_DISK = {"torch": "2.13.0"}
"""Tested at another version than the lowest: constraints-min.txt says why."""


def pins(name: str) -> dict[str, Version]:
    """Distribution -> version, of a file of constraints."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    found = {canonicalize_name(line.partition("==")[0]): Version(line.partition("==")[2]) for line in lines}
    assert len(found) == len(lines)
    return found


def asked(*extras: str) -> dict[str, Requirement]:
    """What the base and these extras ask for, by name, extras of our own and the dependencies of parity resolved."""
    listed = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    found: dict[str, Requirement] = {}
    for requirement in map(Requirement, listed):
        if requirement.name == PROJECT["name"]:
            found |= asked(*requirement.extras)
        elif requirement.name == PARITY["name"]:
            found |= {canonicalize_name(needed.name): needed for needed in map(Requirement, PARITY["dependencies"])}
        else:
            found[canonicalize_name(requirement.name)] = requirement
    return found


def make(*words: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, **variables}
    command = ["make", "-f", str(ROOT / "Makefile"), *words]
    return subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, check=False)


# ---- what make installs ----


@pytest.mark.parametrize(("target", "extra"), [("demo", "demo"), ("test", "dev"), ("lint", "dev"), ("docs", "dev")])
def test_make_installs_what_the_target_needs(target: str, extra: str, tmp_path: Path):
    (tmp_path / "packaging/parity").mkdir(parents=True)
    for name in ("pyproject.toml", "constraints.txt", "packaging/parity/pyproject.toml"):
        shutil.copy2(ROOT / name, tmp_path / name)
    done = make("-n", target, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"-e packaging/parity -e \"\.\[(.*?)\]\"", done.stdout) == [extra]
    assert "-c constraints.txt" in done.stdout


def test_the_demo_needs_no_tools_of_the_tests():
    assert set(asked("demo")) < set(asked("dev"))
    assert not {"pytest", "mypy", "mkdocs", "hypothesis", "ruff", "ipykernel"} & set(asked("demo"))


# ---- the pinned versions ----


def test_the_oldest_are_the_lower_bounds():
    pinned = pins("constraints-min.txt")
    for name, requirement in asked("parity", "onnx", "parquet", "tensorboard", "hub", "demo").items():
        (bound,) = (Version(s.version) for s in requirement.specifier if s.operator == ">=")
        assert pinned[name] == Version(NOT_ON_DISK.get(name, str(bound))), name


def test_the_newest_are_admitted_and_not_older_than_the_pinned_ones():
    newest, usual = pins("constraints-newest.txt"), pins("constraints.txt")
    for name, requirement in asked("jax", "tensorboard", "hub").items():
        assert newest[name] in requirement.specifier, name
        assert newest[name] >= usual[name], name
    assert newest["jax"] > usual["jax"]
    assert newest["flax"] > usual["flax"]


@pytest.mark.parametrize("name", ["oldest", "newest"])
def test_the_lists_of_tests_name_what_is_there(name: str):
    for line in (ROOT / f"tests/{name}.txt").read_text().splitlines():
        assert (ROOT / line).exists(), line


# ---- the Python for the newest ----


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Has what `make test-newest` asks for."""
    shutil.copy(ROOT / "constraints-newest.txt", tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_without_a_python_that_is_new_enough_make_says_so(folder: Path):
    done = make("test-newest", "PYTHON_NEWEST=", cwd=folder)
    assert done.returncode == 2
    said = [
        line
        for line in (done.stdout + done.stderr).splitlines()
        if not re.match("make.*(Error|Entering|Leaving)", line)
    ]
    assert said == ["test-newest needs Python 3.12 or 3.13 (PYTHON_NEWEST=/path/to/python)"]


def test_a_python_of_pyenv_is_found_though_its_shim_does_not_run(folder: Path):
    shims = folder / "shims"
    shims.mkdir()
    for name in ("python3.13", "python3.12"):
        (shims / name).write_text("#!/bin/sh\nexit 127\n")
    wanted = folder / "pyenv/versions/3.13.1/bin/python"
    wanted.parent.mkdir(parents=True)
    wanted.write_text(f"#!/bin/sh\necho {wanted}\n")
    for path in (*shims.iterdir(), wanted):
        path.chmod(0o755)
    search = f"{shims}{os.pathsep}{os.environ['PATH']}"
    done = make("-n", "test-newest", cwd=folder, PATH=search, PYENV_ROOT=str(folder / "pyenv"))
    assert f"{wanted} -m venv" in done.stdout, done.stderr
