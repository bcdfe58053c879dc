"""python -m tools.reliability.coverage [--workers N] [--data FOLDER]

Runs the whole test suite and says which branches it takes, package by package: of `parity` at least 95 %, of every
other at least 90 %. Processes that tests start count too. A file counts by its statements and the ways out of its
branches together, as coverage.py's percentages do. Exit code 1 where a package falls short or a test fails.

`--data` evaluates what runs before have left in a folder, such as one by `COVERAGE_FILE=FOLDER/.coverage python -m
coverage run -m pytest tests/jax`; nothing is run then.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import coverage

from t2t_common.io import cli
from tools.command import parse
from tools.reliability import record
from tools.tables import show

LIMITS = defaultdict(lambda: 90.0, parity=95.0)
"""Percent of each package that has to run."""
COUNTS = ("statements", "missing_statements", "branches", "missing_branches")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command line."""

    workers: int = 2
    """Processes that run the tests."""
    data: Path | None = None
    """Folder with the data of earlier runs; the suite is run without."""
    json: Path = record.RESULTS / "coverage.json"
    """File of the result."""


def main(args: Sequence[str]) -> int:
    options = parse(Options, args, "tools.reliability.coverage", __doc__)
    start, passed = time.monotonic(), True
    if options.data is None:
        with tempfile.TemporaryDirectory(prefix="coverage-") as name:
            passed = run_suite(Path(name), options.workers)
            files = measured(Path(name))
    else:
        files = measured(options.data)
    packages = by_package(files)
    command = f"python -m tools.reliability.coverage --workers {options.workers}"
    seconds = None if options.data is not None else time.monotonic() - start
    figures = {"every_test_passed": passed, "packages": packages, "files_below_their_limit": below(files)}
    record.write(options.json, command, figures, seconds=seconds)
    _show(packages)
    return cli.OK if passed and all(row["holds"] for row in packages.values()) else cli.FAILED


def run_suite(folder: Path, workers: int) -> bool:
    """Runs every test, with the data of all processes in `folder`; whether all passed."""
    command = [
        sys.executable,
        "-m",
        "coverage",
        "run",
        "-m",
        "pytest",
        "-p",
        "tools.reliability.run_faults.workers_saved",
    ]
    command += ["-n", str(workers), "--dist", "worksteal"]
    environ = {"OMP_NUM_THREADS": "1", **os.environ, "COVERAGE_FILE": str(folder.absolute() / ".coverage")}
    return subprocess.run(command, cwd=record.ROOT, env=environ, check=False).returncode == 0


def measured(folder: Path) -> dict[str, dict[str, int]]:
    """`COUNTS` of every source file, from the data that runs left in `folder`, which stay there.

    Raises:
        FileNotFoundError: there are none.
    """
    if not any(folder.glob(".coverage*")):
        raise FileNotFoundError(f"{folder} holds no data of coverage (.coverage*): run tests with it first")
    with tempfile.TemporaryDirectory() as scratch:
        data = coverage.Coverage(data_file=f"{scratch}/.coverage", config_file=str(record.ROOT / "pyproject.toml"))
        data.combine([str(folder)], keep=True)
        # Errors: of copies of the sources that tests made, and that are gone.
        data.json_report(outfile=f"{scratch}/report.json", ignore_errors=True)
        report = json.loads(Path(scratch, "report.json").read_text())
    return {
        Path(name).as_posix(): {
            "statements": file["summary"]["num_statements"],
            "missing_statements": file["summary"]["missing_lines"],
            "branches": file["summary"]["num_branches"],
            "missing_branches": file["summary"]["missing_branches"],
        }
        for name, file in report["files"].items()
        if not Path(name).is_absolute()  # copies, such as those that tests install elsewhere
    }


def by_package(files: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, Any]]:
    """A row of counts for every package, with its percentage, its limit and whether it holds."""
    rows = {}
    for package in sorted({_package(name) for name in files}):
        own = [counts for name, counts in files.items() if _package(name) == package]
        sums = {name: sum(counts[name] for counts in own) for name in COUNTS}
        figure, limit = percent(own), LIMITS[package]
        rows[package] = {"files": len(own), **sums, "percent": figure, "limit": limit, "holds": figure >= limit}
    return rows


def below(files: Mapping[str, Mapping[str, int]]) -> list[dict[str, Any]]:
    """The files that alone would fall short, worst first."""
    short = {name: percent([counts]) for name, counts in files.items()}
    names = sorted((name for name in files if short[name] < LIMITS[_package(name)]), key=short.__getitem__)
    return [{"file": name, "percent": short[name], **files[name]} for name in names]


def percent(counts: Iterable[Mapping[str, int]]) -> float:
    """What of statements and branches ran, in percent, rounded down to tenths; 100 where there are none."""
    counts = list(counts)
    every = sum(c["statements"] + c["branches"] for c in counts)
    missing = sum(c["missing_statements"] + c["missing_branches"] for c in counts)
    return 1000 * (every - missing) // every / 10 if every else 100.0


def _package(name: str) -> str:
    return Path(name).parts[0].removesuffix(".py")


def _show(rows: Mapping[str, Mapping[str, Any]]) -> None:
    def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
        missing = (f"{row[f'missing_{kind}']} of {row[kind]}" for kind in ("statements", "branches"))
        return f"{row['percent']:.1f}", f"{row['limit']:.0f}", *missing

    columns = ("package", "percent", "limit", "statements missing", "branches missing")
    show(columns, [(name, *cells(row)) for name, row in rows.items()])


if __name__ == "__main__":
    sys.exit(cli.run(main))
