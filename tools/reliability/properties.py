"""python -m tools.reliability.properties [--profile short] [--only WORDS] [--json FILE]

Every property-based test of `tests` with many and new examples: what has to hold of any tree of modules, any model,
any images, any arguments. The suite runs the same properties with few examples, always the same ones. The file is
written after each property; those that are not run now keep their figures.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from t2t_common.io import cli
from tools.command import parse
from tools.reliability.record import RESULTS, ROOT, write


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command line."""

    profile: Literal["short", "long"] = "long"
    """How many examples: see tests/support/profiles.py."""
    only: str = ""
    """Only properties whose name pytest's -k finds by these words."""
    json: Path = RESULTS / "properties.json"
    """File for the figures."""


@dataclasses.dataclass
class Property:
    """What came of one property; only examples that were run to their end count."""

    profile: str
    examples: int = 0
    seconds: float = 0.0
    counterexamples: int = 0


Done = Callable[[str, Property], None]
"""Called with pytest's name of a property, and what came of it."""


class Recorder:
    """A plugin of pytest that counts the examples of every property, and tells `done` as each has been run."""

    def __init__(self, profile: str, done: Done) -> None:
        self.profile, self.done = profile, done
        self._running = Property(profile)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for test in {id(item.obj): item.obj for item in items if isinstance(item, pytest.Function)}.values():
            test.hypothesis.inner_test = self._counted(test.hypothesis.inner_test)

    def _counted(self, test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def counted(*args: Any, **kwargs: Any) -> None:
            test(*args, **kwargs)
            self._running.examples += 1

        return counted

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self._running = Property(self.profile)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._running.counterexamples += report.failed
        if report.when == "call":
            self._running.seconds = round(report.duration, 1)
        elif report.when == "teardown":
            self.done(report.nodeid, self._running)


def files(folder: Path = ROOT / "tests") -> list[Path]:
    """The tests that hold a property."""
    return [path for path in sorted(folder.rglob("test_*.py")) if "from hypothesis import given" in path.read_text()]


def run(paths: Sequence[Path], profile: str, done: Done, only: str = "") -> bool:
    """Runs every property in the files `paths` under a profile of hypothesis; whether all of them hold.

    Raises:
        ValueError: pytest could not run them, or found none.
    """
    chosen = ["-k", only] if only else []
    quiet = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:randomly"]
    arguments = [*map(str, paths), "-m", "hypothesis", f"--hypothesis-profile={profile}", *chosen, *quiet]
    code = pytest.main(arguments, plugins=[Recorder(profile, done)])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise ValueError(f"no properties were run (pytest: {pytest.ExitCode(code).name}): change --only {only!r}")
    return code == pytest.ExitCode.OK


def main(args: Sequence[str]) -> int:
    options = parse(Options, args, "tools.reliability.properties", __doc__)
    known = json.loads(options.json.read_text())["properties"] if options.json.exists() else {}

    def done(name: str, found: Property) -> None:
        known[name] = dataclasses.asdict(found)
        _write(options.json, dict(sorted(known.items())))

    return cli.OK if run(files(), options.profile, done, options.only) else cli.FAILED


def _write(path: Path, properties: dict[str, dict[str, Any]]) -> None:
    examples, seconds, counterexamples = (
        sum(row[name] for row in properties.values()) for name in ("examples", "seconds", "counterexamples")
    )
    figures = {"examples": examples, "counterexamples": counterexamples, "properties": properties}
    write(path, "python -m tools.reliability.properties", figures, seconds=seconds)


if __name__ == "__main__":
    sys.exit(cli.run(main))
