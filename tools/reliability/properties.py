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
from t2t_common.io.files import check_target
from tools.reliability.record import RESULTS, ROOT, Defect, write

CONVERT, REFUSALS = "tests/parity/carry/test_convert.py", "tests/parity/carry/test_convert_refusals.py"

DEFECTS = (
    Defect("A scalar of PyTorch became a vector of one number in JAX.", f"{CONVERT}::test_a_scalar_stays_a_scalar"),
    Defect(
        "Tensors that flax holds in a plain dict or list ended the conversion with a KeyError.",
        f"{CONVERT}::test_tensors_in_plain_containers_are_carried",
    ),
    Defect("float8 tensors ended the conversion with a TypeError.", f"{CONVERT}::test_numpy_and_back"),
    Defect(
        "Parts of an empty tensor could not be put together.",
        "tests/parity/carry/test_rules.py::test_any_rule_loses_nothing",
    ),
    Defect(
        "Of two tensors that PyTorch ties, one took the place of the other where JAX has them apart.",
        f"{REFUSALS}::test_tied_tensors_of_pytorch_take_no_two_values",
    ),
    Defect(
        "Stacked layers, or q, k and v, of several dtypes were rounded to the dtype of the first.",
        f"{REFUSALS}::test_layers_and_parts_of_one_tensor_share_its_dtype",
    ),
    Defect(
        "One tensor of PyTorch could fill two of flax, of which the way back kept one.",
        f"{REFUSALS}::test_a_tensor_of_pytorch_belongs_to_one_of_flax",
    ),
    Defect(
        "Of two flax tensors whose paths are alike once dotted, one was passed over.",
        f"{REFUSALS}::test_names_that_dots_make_alike_are_an_error",
    ),
    Defect(
        "Any tensor whose name ends in num_batches_tracked was left behind in PyTorch, unasked.",
        f"{REFUSALS}::test_only_batch_norms_own_count_stays_in_pytorch_unasked",
    ),
    Defect(
        "Entries that are no tensors, and flax variables without an array, ended it with an AttributeError.",
        f"{REFUSALS}::test_what_is_no_tensor_is_listed",
    ),
    Defect(
        "Layers missing from a stack were not listed where anything else was wrong too.",
        f"{REFUSALS}::test_whatever_does_not_fit_is_listed_and_nothing_is_changed",
    ),
    Defect(
        "Arguments of create_model that cannot be were a TypeError, ZeroDivisionError or RuntimeError, other ones in "
        "either framework, or made a model in one of them.",
        "tests/jax/models/test_registry.py::test_any_arguments_are_the_same_error_in_both_frameworks",
    ),
    Defect(
        "No images (a batch of 0) were a ZeroDivisionError in JAX, integer images a RuntimeError in PyTorch.",
        "tests/t2t_parity/test_pair.py::test_images_that_do_not_fit_are_the_same_error_in_both_frameworks",
    ),
)


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
    options = cli.parse(Options, args, prog="python -m tools.reliability.properties", description=__doc__ or "")
    check_target(options.json)
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
    write(path, "python -m tools.reliability.properties", figures, seconds=seconds, defects=DEFECTS)


if __name__ == "__main__":
    sys.exit(cli.run(main))
