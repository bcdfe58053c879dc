"""The code blocks of the pages: Python run in order, in one namespace a page; what they print as the page shows it."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
from pathlib import Path

import jax
from sybil import Example, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser

import parity

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WRITTEN = {"docs/parity.md", "docs/performance.md", "docs/reliability.md"}
"""Pages that a command writes from results: all of them is held by its test."""

NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]\d+)?(?![\w.])")
ROUNDING = 5e-6
"""Figures below are of float32's rounding or less, and differ between machines."""


FIXTURES = {"parity": parity}
"""The plugin's fixture has the functions of the package."""


def page_name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def examples(path: Path) -> list[Example]:
    """The Python blocks of a page, and the text blocks, which show what the Python before them printed.

    Text blocks without Python before them show something else and are left out.
    """
    run = PythonEvaluator()

    def execute(example: Example) -> None:
        example.namespace.setdefault("__name__", "page")  # where its classes say they are from
        before = dict(example.namespace)
        # Readers have JAX's own settings.
        with jax.numpy_rank_promotion("allow"), contextlib.redirect_stdout(io.StringIO()) as printed:
            run(example)
            for name, value in list(example.namespace.items()):
                if name.startswith("test_") and value is not before.get(name):  # as pytest would
                    names = inspect.signature(value).parameters
                    value(*(example.namespace.get(name, FIXTURES.get(name)) for name in names))
        example.namespace["PRINTED"] = printed.getvalue()

    def compare(example: Example) -> None:
        if (printed := example.namespace.pop("PRINTED", None)) is not None:
            assert_shown(example.parsed, printed)

    parsers = [CodeBlockParser("python", execute), CodeBlockParser("text", compare)]
    return list(Sybil(parsers).parse(path).examples())


def assert_shown(shown: str, printed: str) -> None:
    """The same text up to white space and places in files, the same counts, other figures to 5 %, rounding as such."""
    texts = [" ".join(re.sub(r"\(\S+:\d+\)", "(PLACE)", text).split()) for text in (shown, printed)]
    assert NUMBER.sub("#", texts[0]) == NUMBER.sub("#", texts[1]), f"the page shows\n{shown}\nprinted is\n{printed}"
    for a, b in zip(*(NUMBER.findall(text) for text in texts), strict=True):
        x, y = float(a), float(b)
        counts = re.fullmatch(r"-?\d+", a) and re.fullmatch(r"-?\d+", b)
        same = abs(x - y) <= (0 if counts else 0.05 * abs(y)) or max(abs(x), abs(y)) < ROUNDING
        assert same, f"the page shows {a}, printed is {b}\n{printed}"


def shell_lines(path: Path) -> list[str]:
    """The commands of a page's shell blocks, continued lines joined."""
    found: list[str] = []
    parser = CodeBlockParser("sh", lambda example: found.extend(example.parsed.replace("\\\n", " ").splitlines()))
    for example in Sybil([parser]).parse(path).examples():
        example.evaluate()
    return [line for line in found if line.strip()]
