"""Every code block of README.md and docs/: Python runs and prints what is shown; commands are understood."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import t2t_torch
from parity.commands.options import Parser
from t2t_common.io import cli
from t2t_config import Pretrained, find_pretrained
from t2t_config.weights.download import cached_download
from tests.support.fake_hub import FakeHub, fake_hub
from tests.support.pages.code_blocks import PAGES, ROOT, assert_shown, examples, page_name, shell_lines

MODEL = "t2t_vit_14"
"""Whose published weights the pages load."""

PROOFS = ("check", "convert", "train", "report", "selftest", "survey", "doctor", "verify", "mcp")
"""The subcommands of parity."""

OTHERS = {"build", "pip", "pytest", "mkdocs"}
"""Modules with command lines of their own."""


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which the published file of `MODEL` lies as if downloaded, with weights of ours."""
    listed = find_pretrained(MODEL)
    path = tmp_path_factory.mktemp("cache") / Path(listed.url).name
    t2t_torch.save_checkpoint(t2t_torch.create_model(MODEL), path)
    note = {"url": listed.url, "num_bytes": path.stat().st_size}
    path.with_name(f"{path.name}.json").write_text(json.dumps(note))
    return path


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """Where huggingface_hub goes in place of the hub."""
    constants = importlib.import_module("huggingface_hub.constants")
    for module in ("hf_api", "file_download", "_snapshot_download"):  # before the change, which must not stay in them
        importlib.import_module(f"huggingface_hub.{module}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with fake_hub("hf_page") as hub:
        monkeypatch.setenv("HF_TOKEN", hub.token)
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        yield hub


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, release: Path) -> Path:
    """The folder that the pages' Python runs in: the files that they name are there."""
    folder = tmp_path / "page"
    folder.mkdir()
    (folder / release.name).hardlink_to(release)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("T2T_CACHE", str(release.parent))
    # Weights of ours are not held to the size and the digest of the authors' file.
    monkeypatch.setattr(Pretrained, "download", lambda self: cached_download(self.url))
    monkeypatch.setenv("COLUMNS", "100")
    return folder


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_python_runs_and_prints_what_is_shown(page: Path, folder: Path, hub: FakeHub, subtests: Any):
    torch.manual_seed(0)
    for example in examples(page):
        with subtests.test(line=example.line):
            example.evaluate()


def test_what_is_shown_is_compared():
    assert_shown("error 6.3e-06 (a.py:3)\nrounding 1e-16", "error  6.4e-06 (page.md:31) rounding 3.1e-16")
    for shown, printed in (
        ("error 6.3e-06", "error 7.3e-06"),
        ("a 1", "b 1"),
        ("1e-16", "1e-5"),
        ("a", "a b"),
        ("32", "33"),
    ):
        with pytest.raises(AssertionError, match="the page shows"):
            assert_shown(shown, printed)


def test_pages_with_wrong_code_are_noticed(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("```python\ndef test_it():\n    1 / 0\n```\n\n```python\nprint(3)\n```\n\n```text\n4\n```\n")
    failing, printing, shown = examples(page)
    with pytest.raises(ZeroDivisionError):
        failing.evaluate()
    printing.evaluate()
    with pytest.raises(AssertionError, match="the page shows 4, printed is 3"):
        shown.evaluate()


# ---- commands ----


class _UnderstoodError(Exception):
    """The command's options were parsed; it must not run."""


def inline_code(page: Path) -> list[str]:
    """What stands between single backquotes in the text of a page."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]


def commands(page: Path) -> list[list[str]]:
    """`python -m ...`, as module and arguments, of the shell blocks and of code in the text, names filled in."""
    names = {"RECIPE": "digits", "NAME": "t2t_vit_micro"}
    found = []
    for line in [*shell_lines(page), *(code for code in inline_code(page) if "..." not in code)]:
        words = shlex.split(line, comments=True)
        if "-m" in words and words[0] in ("python", "torchrun"):
            found.append([names.get(word, word) for word in words[words.index("-m") + 1 :]])
    return [command for command in found if command[0] not in OTHERS]


COMMANDS = [(page_name(page), command) for page in PAGES for command in commands(page)]


def command_module(name: str) -> ModuleType:
    """The module that `python -m NAME` runs."""
    return importlib.import_module(f"{name}.__main__" if ROOT.joinpath(*name.split(".")).is_dir() else name)


@pytest.mark.parametrize(
    ("page", "command"), COMMANDS, ids=[f"{page} {' '.join(command)}" for page, command in COMMANDS]
)
def test_commands_are_understood(page: str, command: Sequence[str], monkeypatch: pytest.MonkeyPatch):
    parse = cli.parse

    def understand(*args: Any, **kwargs: Any) -> None:
        parse(*args, **kwargs)
        raise _UnderstoodError

    def understand_too(*args: Any) -> None:
        parse_args(*args)
        raise _UnderstoodError

    parse_args = Parser.parse_args
    monkeypatch.setattr(cli, "parse", understand)
    monkeypatch.setattr(Parser, "parse_args", understand_too)
    name, *args = command
    module = command_module(name)
    if args == []:  # named as a module, not as a call
        return
    with pytest.raises((_UnderstoodError, SystemExit)) as end:
        raise SystemExit(module.main(args))  # it printed its help
    assert not isinstance(end.value, SystemExit) or end.value.code in (0, None)


def test_options_in_the_text_exist(capsys: pytest.CaptureFixture[str]):
    """`--mesh data=4,fsdp=2` and the like, without their command."""
    first = {"parity": PROOFS, "t2t_jax.train": ("digits",), "t2t_torch.train": ("digits",)}
    for name in {command[0] for _, command in COMMANDS}:
        for word in first.get(name, ("",)):
            try:
                code = command_module(name).main([*word.split(), "--help"])
            except SystemExit as end:
                code = end.code
            assert code in (cli.OK, None), name
    known = set(re.findall(r"--[a-z][\w-]*", capsys.readouterr().out))
    assert {"--mesh", "--recipe", "--junit"} <= known
    known |= {"--version"}  # which every command answers, before its own options
    for page in PAGES:
        named = [code.split()[0] for code in inline_code(page) if code.startswith("--")]
        assert set(named) <= known, page


def test_commands_are_found():
    found = {command[0] for _, command in COMMANDS}
    assert {"parity", "t2t_jax.train", "t2t_torch.train", "t2t_jax.predict", "t2t_torch.export"} <= found


def test_make_targets_and_extras_exist():
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    for page in PAGES:
        for line in shell_lines(page):
            if line.startswith("make "):
                assert line.split()[1] in targets, (page, line)
            for named in re.findall(r"\[([\w,]+)\]", line) if "pip install" in line else ():
                assert set(named.split(",")) <= extras, (page, line)
