"""Options of the command line: argparse, with errors of one line that say what is wrong, and types that explain."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Sequence
from typing import Any, NoReturn

LEVELS = ("forward", "gradients", "train")
"""Levels of `parity.check`."""

REFERENCES = ("torch", "jax")
"""Sides of `parity.check`."""


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Ends the text of an option with its default, unless the text does, and that of an argument with "(required)"."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if isinstance(action, argparse._HelpAction):
            return action.help
        if (not action.option_strings and action.nargs is None) or (action.required and action.option_strings):
            return f"{action.help} (required)"
        if action.help is not None and action.help.endswith(")") and "(default: " in action.help:
            return action.help  # it describes what None stands for
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Parser of one command, for example "python -m parity check"."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, formatter_class=HelpFormatter, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise `ValueError` with a line that names the option, its value and the remedy."""
        raise ValueError(f"{self._rephrased(message)} (see {self.prog} --help)")

    def _rephrased(self, message: str) -> str:
        missing = message.removeprefix("the following arguments are required: ")
        if missing != message:
            return f"missing: {missing}"
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            words = unknown.split()
            word = next((word for word in words if word.startswith("-")), words[0])
            kind = "option" if word.startswith("-") else "argument"
            return f"unknown {kind} {word}" + did_you_mean(word, self._option_string_actions)
        message = re.sub(r"^argument (\S+?)(?:, \S+)?:", r"\1:", message)
        return re.sub(r": expected .*$", " needs a value", message)


def did_you_mean(word: str, known: Sequence[str] | Any) -> str:
    """Return ": did you mean X?" for the known word that is closest, or nothing."""
    close = difflib.get_close_matches(word, list(known), 1)
    return f": did you mean {close[0]}?" if close else ""


def positive(text: str) -> int:
    """Parse a whole number above 0."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if value <= 0:
        raise argparse.ArgumentTypeError(f"must be positive, got {value}")
    return value


def natural(text: str) -> int:
    """Parse a whole number that is not negative."""
    return 0 if text.strip() == "0" else positive(text)


def amount(text: str) -> float:
    """Parse a number above 0."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be positive, got {text}")
    return value


def level(text: str) -> str:
    """Parse a level of `parity.check`."""
    return _one_of(LEVELS, text)


def reference(text: str) -> str:
    """Parse the side that is the reference of `parity.check`."""
    return _one_of(REFERENCES, text)


def _one_of(known: Sequence[str], text: str) -> str:
    if text not in known:
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(known)}")
    return text
