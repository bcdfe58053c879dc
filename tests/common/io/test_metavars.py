"""Help texts of options: placeholders of values, and no line breaks of the source."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from t2t_common.io import cli
from t2t_common.io.metavars import readable


@dataclasses.dataclass(frozen=True)
class Inner:
    """Options inside."""

    model: str = "a"
    """Which."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the command line."""

    inner: Inner
    json: Path | None = None
    """Where to."""
    workdir: Path | None = None
    """Where."""
    mean: tuple[float, ...] | None = None
    """How bright."""
    img_size: int | tuple[int, int] | None = None
    """How large."""
    flag: bool = False
    """Or
    not."""
    names: tuple[str, ...] = ()
    """All of them
    without any."""


def test_values_have_the_names_of_what_they_are(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        cli.parse(Options, ["--help"], prog="do", description="It.")
    lines = {
        " ".join(found.split()) for found in re.findall(r"--.*?(?=  |\n| *[\u2500-\u257f])", capsys.readouterr().out)
    }
    expected = {"--inner.model NAME", "--json FILE", "--workdir DIR", "--mean FLOAT ...", "--flag, --no-flag"}
    assert expected | {"--img-size PIXELS [PIXELS]"} <= lines


def test_help_texts_have_no_line_breaks_of_the_source_and_no_empty_default(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        cli.parse(Options, ["--help"], prog="do", description="It.\n\n    And more.")
    text = capsys.readouterr().out
    assert re.search(r"Or not\. \(default: False\)", text)
    assert "All of them without any." in text
    assert "(default: )" not in text
    assert "\nAnd more." in text


def test_what_is_parsed_does_not_change():
    args = ["--json", "a.json", "--mean", "0.1", "0.2", "--img-size", "3", "4", "--flag", "--inner.model", "b"]
    found = cli.parse(Options, args, prog="do", description="It.")
    assert found == Options(Inner("b"), Path("a.json"), None, (0.1, 0.2), (3, 4), True)


@pytest.mark.parametrize(
    ("metavar", "name"),
    [
        ("{None}|INT", "INT"),
        ("{None,bilinear,bicubic}", "{bilinear,bicubic}"),
        ("{None}|{[FLOAT [FLOAT ...]]}", "FLOAT ..."),
        ("[{tensorboard,wandb} [{tensorboard,wandb} ...]]", "{tensorboard,wandb} ..."),
        ("FLOAT FLOAT", "FLOAT FLOAT"),
        ("{None}|STR", "TEXT"),
    ],
)
def test_types_become_words(metavar: str, name: str):
    assert readable(metavar) == name
