"""CONTRIBUTING.md, followed: its steps add a model in both frameworks, and the proof of it holds."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clean_env import ROOT, copy_sources

PAGE = ROOT / "CONTRIBUTING.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks() -> Iterator[tuple[str, str]]:
    """(language, text) of the page's code blocks, in order."""
    return ((found[1], found[2]) for found in BLOCK.finditer(PAGE.read_text()))


def change(sources: Path, diff: str) -> None:
    """Applies one hunk, as the page shows it: `+++ FILE`, then lines that stay (' '), go ('-') and come ('+')."""
    head, *lines = diff.splitlines()
    path = sources / head.removeprefix("+++ ")
    old, new = ("".join(f"{line[1:]}\n" for line in lines if line[0] in kept) for kept in (" -", " +"))
    text = path.read_text()
    assert text.count(old) == 1, f"the page shows of {path.name}\n{old}"
    path.write_text(text.replace(old, new))


def create(sources: Path, block: str) -> Path:
    """Writes a new file: `# FILE`, then its content."""
    head, _, text = block.partition("\n")
    path = sources / head.removeprefix("# ")
    assert not path.exists()
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with the page's variant."""
    sources = copy_sources(tmp_path_factory.mktemp("contributing") / "t2t-vit")
    for language, text in blocks():
        if language == "diff":
            change(sources, text)
        elif language == "python":
            create(sources, text)
    return sources


def run(sources: Path, *words: str) -> str:
    environ = {**os.environ, "PYTHONPATH": str(sources), "COLUMNS": "120"}
    command = [sys.executable, *words]
    done = subprocess.run(command, cwd=sources, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


SHELL = [line for language, text in blocks() if language == "sh" for line in text.splitlines()]
STEPS = [line for line in SHELL if line.startswith("python ")]


def test_the_page_has_all_kinds_of_steps():
    kinds = [language for language, _ in blocks()]
    assert (kinds.count("diff"), kinds.count("python"), len(STEPS)) == (6, 2, 2)


def test_the_new_files_are_clean(extended: Path):
    names = ("t2t_vit_scaled", "registry")
    files = [f"{package}/models/{name}.py" for package in ("t2t_torch", "t2t_jax") for name in names]
    run(extended, "-m", "ruff", "check", "--no-cache", *files, "t2t_config/models.py")
    run(extended, "-m", "ruff", "format", "--no-cache", "--check", *files, "t2t_config/models.py")


@pytest.mark.parametrize("step", STEPS)
def test_the_commands_hold(extended: Path, step: str):
    printed = run(extended, *shlex.split(step)[1:])
    assert ("EQUAL: " in printed and "T2TViTScaled" in printed) or re.search(r"\b[3-9] passed", printed), printed


def test_the_proof_of_the_variant_can_fail(extended: Path):
    path = extended / "t2t_jax/models/t2t_vit_scaled.py"
    right = path.read_text()
    path.write_text(right.replace("gamma2 * self.mlp", "gamma1 * self.mlp"))
    try:
        with pytest.raises(AssertionError, match=r"DIFFERENT: .* first divergence: blocks\.0"):
            run(extended, *shlex.split(STEPS[0])[1:], "--level", "forward")
    finally:
        path.write_text(right)


def test_the_map_is_of_this_house():
    table = PAGE.read_text().partition("## Set up")[0]
    for place in re.findall(r"`([a-z_]+(?:/[a-z_]*)*)/?`", table):
        assert (ROOT / place).exists(), place
    targets = re.findall(r"^make ([\w-]+)", PAGE.read_text(), flags=re.MULTILINE)
    assert targets == ["lint", "test", "docs", "test-min", "audit"]
