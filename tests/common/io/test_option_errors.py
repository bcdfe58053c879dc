"""What is wrong with options, in words that name the option, its value and what would be right."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro
from tyro.conf import Positional

from t2t_common.io import cli


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the command line."""

    name: Positional[str]
    """Which."""
    workdir: Path
    """Where --to put it, in a sentence so long that it would not fit into one line of a terminal that is narrow."""
    lr: float = 0.1
    """How fast."""
    epochs: int = 3
    """How long."""
    kind: Literal["a", "b"] | None = None
    """Of which kind."""
    img_size: int | tuple[int, int] | None = None
    """How large."""
    flag: bool = False
    """Or not."""

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs is {self.epochs}: give at least 1")


@dataclasses.dataclass(frozen=True)
class Other:
    """Another command."""


GIVEN = ["me", "--workdir", "w"]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "missing: NAME, --workdir DIR"),
        (["me"], "missing: --workdir DIR"),
        (["me", "--wrkdir", "w"], "unknown option --wrkdir: did you mean --workdir?"),
        ([*GIVEN, "--lrr", "3"], "unknown option --lrr"),
        ([*GIVEN, "--epoch", "3"], "unknown option --epoch: did you mean --epochs?"),
        ([*GIVEN, "stray"], "unknown argument stray"),
        ([*GIVEN, "--lr"], "--lr needs a value"),
        ([*GIVEN, "--lr", "fast"], "--lr: 'fast' is not a number"),
        ([*GIVEN, "--epochs", "1.5"], "--epochs: '1.5' is not a whole number"),
        ([*GIVEN, "--epochs", "0"], "epochs is 0: give at least 1"),
        ([*GIVEN, "--img-size", "1", "2", "3"], "--img-size: '1 2 3' is not PIXELS [PIXELS]"),
    ],
)
@pytest.mark.parametrize("columns", ["40", "200"])
def test_one_option(args: list[str], says: str, columns: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(ValueError, match="see do it --help") as error:
        cli.parse(Options, args, prog="do it", description="It.")
    text = str(error.value).removesuffix(" (see do it --help)")
    assert text == says or (says == "unknown option --lrr" and text.startswith(says))


def test_choices_are_those_that_make_sense():
    with pytest.raises(ValueError, match="--kind: 'c' is not one of ") as error:
        cli.parse(Options, [*GIVEN, "--kind", "c"], prog="do", description="It.")
    assert "None" not in str(error.value)
    assert set(str(error.value).partition(" is not one of ")[2].partition(" (see")[0].split(", ")) == {"a", "b"}


def test_subcommands():
    kinds = Annotated[Options, tyro.conf.subcommand("make")] | Annotated[Other, tyro.conf.subcommand("break")]
    for args, says in (
        (["mak"], r"no command 'mak': did you mean make\? \(see do --help\)"),
        (["what"], r"no command 'what': choose one of make, break"),
        (["make", "me"], r"missing: --workdir DIR \(see do make --help\)"),
    ):
        with pytest.raises(ValueError, match=says):
            cli.parse(kinds, args, prog="do", description="It.")  # type: ignore[arg-type]
