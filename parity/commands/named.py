"""Models by name: those of installed packages, and `MODULE:FUNCTION`."""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from parity.commands import installed
from parity.commands.installed import Function, Models
from parity.commands.options import did_you_mean

if TYPE_CHECKING:
    from parity.pair import Pair

FUNCTION = re.compile(r"([^\W\d]\w*(?:\.[^\W\d]\w*)*):([^\W\d]\w*)")

GIVEN = {"level", "formats", "memory", "progress"}
"""Arguments of `parity.check` that the commands have options for, or give themselves."""


def add_name(parser: argparse.ArgumentParser) -> None:
    """Add the argument NAME."""
    parser.add_argument(
        "name",
        metavar="NAME",
        help="Model of an installed package, or MODULE:FUNCTION, a function that returns a parity.Pair.",
    )


def models_for(args: Sequence[str]) -> Models | None:
    """Return the models that the options of a command are for: those of the first word that is the name of a model.

    Without such a word they are the only models that there are, if they are; then their options are shown and their
    error says which names there are.

    Raises:
        ValueError: `MODULE:FUNCTION` does not exist.
    """
    known = installed.models()
    for word in args:
        if found := next((models for models in known if word in models.names()), None):
            return found
        if parts := FUNCTION.fullmatch(word):
            return _function(word, *parts.groups())
    return known[0] if len(known) == 1 else None


def pair_of(models: Models | None, options: argparse.Namespace) -> Pair:
    """Create the pair that the options name.

    Raises:
        ValueError: There is no such model, or the options make no sense for it.
    """
    name = options.name
    if models is None:
        names = sorted({known for models in installed.models() for known in models.names()})
        hint = did_you_mean(name, names) or ": give MODULE:FUNCTION, a function that returns a parity.Pair"
        raise ValueError(f"no installed package has a model {name!r}{hint}")
    pair = models.pair(name, options)
    if not all(hasattr(pair, field) for field in ("torch_model", "jax_model", "inputs", "options")):
        raise ValueError(f"{name} returned {type(pair).__name__} in place of a parity.Pair")
    if twice := pair.options.keys() & GIVEN:
        which = ", ".join(sorted(twice))
        raise ValueError(f"the parity.Pair of {name} sets {which}, as the command does: leave it out")
    return pair


def _function(word: str, module: str, function: str) -> Models:
    try:
        make = getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there, and what it imports is not
        raise ValueError(f"{word}: there is no module {error.name}; run from the folder that it is in") from None
    except AttributeError:
        raise ValueError(f"{word}: {module} has no function {function}") from None
    if not callable(make):
        raise ValueError(f"{word} is {type(make).__name__} in place of a function that returns a parity.Pair")
    return Function(word, make)
