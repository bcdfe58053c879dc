"""python -m tools.reliability.versions [--json FILE]

Runs a part of the tests with the oldest versions that pyproject.toml admits, and with the newest, each set in its own
environment (make test-min, make test-newest); looks up the known holes of the pinned versions (make audit).
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from t2t_common.io import cli
from tools.command import parse
from tools.reliability import record

ENVIRONMENTS = {"oldest": ("test-min", ".venv-min"), "newest": ("test-newest", ".venv-newest")}
"""Set of versions: target of the Makefile, folder where it leaves its environment and its tests.xml."""
SHOWN = ("numpy", "torch", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "protobuf", "pillow")
VERSIONS = """
import json, platform, sys
from importlib import metadata
found = {d.name.lower(): d.version for d in metadata.distributions()}
print(json.dumps({"python": platform.python_version(), **{name: found.get(name, "none") for name in sys.argv[1:]}}))
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command line."""

    json: Path = record.RESULTS / "versions.json"
    """File for the result."""


def counts(path: Path) -> dict[str, int]:
    """Tests that passed and that did not, by pytest's JUnit file."""
    suites = ET.parse(path).getroot().iter("testsuite")
    totals = [
        {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")} for suite in suites
    ]
    failed = sum(total["failures"] + total["errors"] for total in totals)
    skipped = sum(total["skipped"] for total in totals)
    return {"passed": sum(total["tests"] for total in totals) - failed - skipped, "failed": failed, "skipped": skipped}


def run(target: str, folder: Path) -> dict[str, Any]:
    """Makes an environment and runs its tests; its versions, and how the tests ended.

    Raises:
        ValueError: the tests did not run.
    """
    junit = folder / "tests.xml"
    junit.unlink(missing_ok=True)
    subprocess.run(["make", target], cwd=record.ROOT, check=False)
    if not junit.exists():
        raise ValueError(f"make {target} ran no test: see its output above")
    command = [str(folder / "bin" / "python"), "-c", VERSIONS, *SHOWN]
    versions = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {**json.loads(versions), **counts(junit)}


def verdict(code: int, output: str) -> str:
    """What an audit says, in words: `code` and `output` are those of `make audit`."""
    lines = output.strip().splitlines()
    found = [line for line in lines if line.startswith("Found ")]
    if code == 0:
        return "none known"
    return found[0] if found else "not looked up: the database could not be reached"


def main(args: Sequence[str]) -> int:
    """The command line; 1 if a test failed or a hole is known."""
    options = parse(Options, args, "tools.reliability.versions", __doc__)
    start = time.monotonic()
    table = {name: run(target, record.ROOT / folder) for name, (target, folder) in ENVIRONMENTS.items()}
    done = subprocess.run(["make", "audit"], cwd=record.ROOT, capture_output=True, text=True, check=False)
    audit = verdict(done.returncode, done.stdout + done.stderr)
    figures = {"environments": table, "vulnerabilities of the pinned versions": audit}
    seconds = time.monotonic() - start
    record.write(options.json, "python -m tools.reliability.versions", figures, seconds=seconds)
    holds = not audit.startswith("Found") and not any(row["failed"] for row in table.values())
    return cli.OK if holds else cli.FAILED


if __name__ == "__main__":
    sys.exit(cli.run(main))
