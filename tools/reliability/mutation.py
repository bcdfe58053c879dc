"""python -m tools.reliability.mutation [--resume] [--workers N] [--json FILE]

Tests the tests of the proof: mutmut changes one thing at a time in the files that [tool.mutmut] in pyproject.toml
names, and a test has to notice. A change that none notices has to stand in equivalent_mutants.toml, with the reason why
it changes nothing; exit code 1 if one does not, or if one that stands there was noticed after all.

Not changed: properties and other decorated functions, and values of modules and classes.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.stats import status_by_exit_code
from rich.console import Console

from t2t_common.io import cli
from tools.command import parse
from tools.reliability.record import RESULTS, ROOT, write
from tools.tables import show

EQUIVALENT = ROOT / "tools" / "reliability" / "mutants" / "equivalent_mutants.toml"
KILLED, TIMED_OUT, SURVIVED = "killed", "timeout", "survived"
NOTICED = (KILLED, TIMED_OUT)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command line."""

    resume: bool = False
    """Go on in the folder `mutants`: what was noticed stays, while the code is as it was; survivors are tried again."""
    workers: int = os.cpu_count() or 1
    """Mutants at a time."""
    json: Path = RESULTS / "mutation.json"
    """File for the figures."""


@dataclasses.dataclass(frozen=True)
class Change:
    """What one mutant changes: lines of a file, in one line, as they are and as they become."""

    file: str
    line: str
    becomes: str


def equivalent(path: Path = EQUIVALENT) -> dict[Change, str]:
    """The changes that no test can notice, each with the reason.

    Raises:
        ValueError: one has no reason.
    """
    found: dict[Change, str] = {}
    for entry in tomllib.loads(path.read_text(encoding="utf-8"))["equivalent"]:
        if not entry["reason"].strip():
            raise ValueError(f"{path}: {entry['line']!r} has no reason")
        found |= {Change(entry["file"], entry["line"], becomes): entry["reason"] for becomes in entry["becomes"]}
    return found


def run_mutmut(root: Path, *, workers: int, resume: bool) -> None:
    """Every mutant of the project at `root` against its tests; the results lie in `root / "mutants"`.

    Raises:
        ValueError: mutmut ended with an error, such as tests that fail without a mutant; it has said which.
    """
    if resume:
        _forget_survivors(root)
    else:
        shutil.rmtree(root / "mutants", ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="xla-") as cache:  # a program that many mutants run is compiled once
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(workers)]
        code = subprocess.run(command, cwd=root, env=environment, check=False).returncode
    if code:
        raise ValueError(f"mutmut ended with code {code}; why, it says above")


def _forget_survivors(root: Path) -> None:
    with contextlib.chdir(root):
        for data in _stored():
            noticed = {name for name, code in data.exit_code_by_key.items() if status_by_exit_code[code] in NOTICED}
            data.exit_code_by_key = {n: code if n in noticed else None for n, code in data.exit_code_by_key.items()}
            data.save()


def _stored() -> Iterator[SourceFileMutationData]:
    """What mutmut left in the folder `mutants` of the working directory, file by file."""
    for meta in sorted(Path("mutants").rglob("*.py.meta")):
        data = SourceFileMutationData(path=meta.relative_to("mutants").with_suffix(""))
        data.load()
        yield data


def outcomes(root: Path) -> dict[str, dict[str, str]]:
    """File -> name of each of its mutants -> `KILLED`, `TIMED_OUT`, or (also where no test runs it) `SURVIVED`."""
    found = {}
    with contextlib.chdir(root):
        for data in _stored():
            statuses = {name: status_by_exit_code[code] for name, code in data.exit_code_by_key.items()}
            found[str(data.path)] = {name: s if s in NOTICED else SURVIVED for name, s in statuses.items()}
    return {file: statuses for file, statuses in found.items() if statuses}


def change(root: Path, file: str, mutant: str) -> Change:
    """What a mutant of `file` changes."""
    with contextlib.chdir(root):
        lines = get_diff_for_mutant(mutant, path=file).splitlines()[2:]
    was, becomes = ([line[1:].strip() for line in lines if line.startswith(sign)] for sign in "-+")
    return Change(file, " ".join(was), " ".join(becomes))


def figures(root: Path, reasons: dict[Change, str]) -> dict[str, Any]:
    """Figures of a finished run: totals, a row for each file, what survived unexplained, reasons without a mutant."""
    files, unexplained, survived = {}, [], set()
    for file, statuses in outcomes(root).items():
        changes = [change(root, file, name) for name, status in statuses.items() if status == SURVIVED]
        survived |= set(changes)
        open_ = [c for c in changes if c not in reasons]
        unexplained += open_
        count = collections.Counter(statuses.values())
        files[file] = {
            "mutants": len(statuses),
            "killed": count[KILLED],
            "timed out": count[TIMED_OUT],
            "explained": len(changes) - len(open_),
            "unexplained": len(open_),
        }
    totals = {name: sum(row[name] for row in files.values()) for name in next(iter(files.values()))}
    return {
        "tool": f"mutmut {metadata.version('mutmut')}",
        **totals,
        "files": files,
        "unexplained mutants": [dataclasses.asdict(c) for c in unexplained],
        "reasons without a mutant": [dataclasses.asdict(c) for c in reasons.keys() - survived],
    }


def main(args: Sequence[str]) -> int:
    options = parse(Options, args, "tools.reliability.mutation", __doc__)
    if options.workers < 1:
        raise ValueError(f"--workers {options.workers}: at least one has to run")
    reasons, start = equivalent(), time.monotonic()
    run_mutmut(ROOT, workers=options.workers, resume=options.resume)
    seconds = None if options.resume else time.monotonic() - start
    found = figures(ROOT, reasons)
    write(options.json, "python -m tools.reliability.mutation", found, seconds=seconds)
    console, columns = Console(), next(iter(found["files"].values()))
    show(("", *columns), [(file, *map(str, row.values())) for file, row in found["files"].items()])
    for title in ("unexplained mutants", "reasons without a mutant"):
        for c in found[title]:
            console.print(f"{title}: {c['file']}\n  - {c['line']}\n  + {c['becomes']}", markup=False, highlight=False)
    return cli.FAILED if found["unexplained mutants"] or found["reasons without a mutant"] else cli.OK


if __name__ == "__main__":
    sys.exit(cli.run(main))
