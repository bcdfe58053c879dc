"""python -m tools.benchmarks.transcripts [--only TEXT] [--json FILE]

Runs the commands whose output the pages show, as they stand there, one after the other in one empty folder: the three
journeys of docs/index.md, and docs/own_data.md.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from t2t_common.data import open_source
from t2t_common.io import cli
from t2t_common.workdir.record import environment
from tools.command import parse, save

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "tools" / "benchmarks" / "results" / "transcripts.json"
COMMANDS = (
    "python -m t2t_jax.train digits --workdir runs/digits",
    "python -m parity convert runs/digits digits.safetensors --model t2t_vit_tiny",
    "python -m t2t_torch.evaluate --checkpoint digits.safetensors --data digits",
    "python -m t2t_jax.predict digit.png --checkpoint runs/digits",
    "python -m parity check t2t_vit_tiny --checkpoint digits.safetensors --html report.html --junit report.xml",
    "python -m tools.photographs photos",
    "python -m t2t_jax.train own --data photos --model t2t_vit_tiny --img-size 64 --workdir runs/photos",
    "python -m t2t_jax.evaluate --checkpoint runs/photos --data photos --per-class",
    "python -m t2t_jax.predict photos/coffee/2-3.png --checkpoint runs/photos --top 2",
)
DIGIT = 15
"""Of the held-out digits, the one that is `digit.png`, as in docs/visualize.md."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command line."""

    only: str = ""
    """Run the commands alone that have this text in them."""
    json: Path | None = None
    """File for all outputs, written after every command. With --only, it keeps those of the other commands, if they
    were printed in the same environment."""


def transcripts(commands: Sequence[str], folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each command with its seconds and the lines that it printed, run in `folder`.

    Raises:
        ValueError: one failed; the message has its last words.
    """
    open_source("digits", "val")[DIGIT][0].save(folder / "digit.png")
    for command in commands:
        start = time.perf_counter()
        arguments = [sys.executable, *shlex.split(command)[1:]]
        done = subprocess.run(arguments, cwd=folder, env=_environ(), capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(f"{command} failed: {(done.stderr.strip() or done.stdout.strip()).splitlines()[-1]}")
        printed = done.stdout.replace(f"{folder.resolve()}/", "").splitlines()
        yield command, {"seconds": round(time.perf_counter() - start), "printed": printed}


def processor() -> str:
    """What the processor is called, and how many there are: rounding, and so the last digits, differ between them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    kind = " ".join(facts.get(name, "") for name in ("cpu family", "model", "stepping", "flags"))
    name = facts.get("model name") or platform.processor() or platform.machine()
    return f"{os.cpu_count()} x {name}, {zlib.crc32(kind.encode()):08x}"  # virtual ones hide which they are


def _environ() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "120"}


def _kept(path: Path | None, here: dict[str, Any]) -> dict[str, Any]:
    """Return the outputs that a file has.

    Raises:
        ValueError: They were printed in another environment.
    """
    if path is None or not path.is_file():
        return {}
    kept = json.loads(path.read_text(encoding="utf-8"))
    if kept["environment"] != here:
        raise ValueError(f"{path} was written in another environment: run all commands, or name another file")
    transcripts: dict[str, Any] = kept["transcripts"]
    return transcripts


def main(args: Sequence[str]) -> int:
    options = parse(Options, args, "tools.benchmarks.transcripts", __doc__)
    commands = [command for command in COMMANDS if options.only in command]
    if not commands:
        raise ValueError(f"--only {options.only!r} is in none of the commands: {'; '.join(COMMANDS)}")
    here = environment() | {"processor": processor()}
    found = _kept(options.json, here) if options.only else {}
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        for command, transcript in transcripts(commands, Path(folder)):
            found[command] = transcript
            console.print(f"{transcript['seconds']} s  {command}", markup=False)
            save(options.json, {"environment": here, "transcripts": found})
    return cli.OK


if __name__ == "__main__":
    sys.exit(cli.run(main))
