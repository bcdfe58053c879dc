"""Commands and named models that installed packages add to the command line, by entry points.

Group `parity.commands`: the name of a command, and a function `main(args, prog) -> int`. It takes the arguments after
the command's name and how the command is called ("python -m parity NAME"), and returns an exit code (see
`parity.commands.process`). The first line of its docstring describes the command. The commands of parity itself cannot
be replaced.

Group `parity.models`: models for `python -m parity check NAME` and `power NAME`. Either the name of a model, and a
function without arguments that returns its `parity.Pair`; or any name, and `Models`: an object or a module with several
models and options of their own.
"""

from __future__ import annotations

import importlib.metadata
import tomllib
from collections.abc import Callable, Collection, Sequence
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any, Protocol

from parity.requirements import CHECKOUT, PROJECT

if TYPE_CHECKING:
    import argparse

    from parity.pair import Pair


class Models(Protocol):
    """The models of a project, by name."""

    def names(self) -> Collection[str]:
        """Return the names of the models. Called for every command, so it should import nothing slow."""

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Add the options of the models to those of the command."""

    def pair(self, name: str, options: argparse.Namespace) -> Pair:
        """Create a model in both frameworks; `ValueError` if the name or the options make no sense."""


class Function:
    """A function without arguments that makes a pair, as `Models`."""

    def __init__(self, name: str, make: Callable[[], Pair]) -> None:
        self.name, self.make = name, make

    def names(self) -> Collection[str]:
        return [self.name]

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Add nothing: the function takes no arguments."""

    def pair(self, name: str, options: argparse.Namespace) -> Pair:
        return self.make()


def commands() -> dict[str, Callable[[Sequence[str], str], int]]:
    """Return the commands of installed packages, by name; one that cannot be loaded says so when it is run."""
    return {point.name: _command(point) for point in entry_points("parity.commands")}


def _command(point: EntryPoint) -> Callable[[Sequence[str], str], int]:
    try:
        return _load(point)
    except ValueError as error:
        problem = error

    def broken(args: Sequence[str], prog: str) -> int:
        raise problem

    broken.__doc__ = f"({problem})"
    return broken


def models() -> list[Models]:
    """Return the named models of installed packages."""
    found: list[Models] = []
    for point in entry_points("parity.models"):
        value = _load(point)
        found.append(value if hasattr(value, "names") else Function(point.name, value))
    return found


def entry_points(group: str) -> list[EntryPoint]:
    """Return the entry points of a group, one for each name.

    In a checkout those of its pyproject.toml come first: an editable installation keeps the entry points that there
    were when it was made, and from a checkout everything runs without being installed.
    """
    here = {point.name: point for point in _of_checkout(group)}
    return list({**{point.name: point for point in importlib.metadata.entry_points(group=group)}, **here}.values())


def _of_checkout(group: str) -> list[EntryPoint]:
    if not PROJECT.is_file():
        return []
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [EntryPoint(name, value, group) for name, value in project["entry-points"].get(group, {}).items()]


def _load(point: EntryPoint) -> Any:
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"cannot load {point.name!r} of the entry points {point.group!r}, {point.value} ({error}): install its "
            "package anew, or uninstall it"
        ) from error
