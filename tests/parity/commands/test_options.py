"""Options that make no sense: one line that names the option, its value and what would be right."""

from __future__ import annotations

import argparse

import pytest

from parity.commands.options import Parser, amount, level, natural, positive


@pytest.fixture
def parser() -> Parser:
    parser = Parser("do it", "Do it.")
    parser.add_argument("name", metavar="NAME", help="Which.")
    parser.add_argument("--batch", type=positive, default=2, help="How many.")
    parser.add_argument("--seed", type=natural, default=0, help="From where.")
    parser.add_argument("--memory", type=amount, default=2.5, help="How much.")
    parser.add_argument("--level", type=level, default="forward", help="How far.")
    parser.add_argument("--formats", action=argparse.BooleanOptionalAction, default=False, help="Or not.")
    parser.add_argument("--size", type=int, nargs="+", help="How large.")
    return parser


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "missing: NAME"),
        (["me", "--bach", "3"], "unknown option --bach: did you mean --batch?"),
        (["me", "--zzz", "3"], "unknown option --zzz"),
        (["me", "--bat", "3"], "unknown option --bat: did you mean --batch?"),  # nothing is abbreviated
        (["me", "stray"], "unknown argument stray"),
        (["me", "--batch"], "--batch needs a value"),
        (["me", "--size"], "--size needs a value"),
        (["me", "--batch", "1.5"], "--batch: '1.5' is not a whole number"),
        (["me", "--batch", "0"], "--batch: must be positive, got 0"),
        (["me", "--seed", "-1"], "--seed: must be positive, got -1"),
        (["me", "--memory", "much"], "--memory: 'much' is not a number"),
        (["me", "--memory", "nan"], "--memory: must be positive, got nan"),
        (["me", "--level", "all"], "--level: 'all' is not one of forward, gradients, train"),
    ],
)
def test_one_option(args: list[str], says: str, parser: Parser):
    with pytest.raises(ValueError, match="see do it --help") as error:
        parser.parse_args(args)
    assert str(error.value) == f"{says} (see do it --help)"


def test_what_makes_sense(parser: Parser):
    options = parser.parse_args(["--level", "train", "--seed", "0", "--size", "3", "4", "--formats", "--", "me"])
    assert vars(options) == {
        "name": "me",
        "batch": 2,
        "seed": 0,
        "memory": 2.5,
        "level": "train",
        "formats": True,
        "size": [3, 4],
    }


def test_help_tells_every_default(parser: Parser):
    text = " ".join(parser.format_help().split())
    assert "NAME Which. (required)" in text
    assert "How many. (default: 2)" in text
    assert "Or not. (default: False)" in text
