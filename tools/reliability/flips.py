"""python -m tools.reliability.flips [--flips N] [--seed N] [--only NAME ...] [--json FILE]

One bit of a checkpoint flipped at a time, in every format that the product writes, and in a zip of PyTorch that others
write. Each is read as a user would: it may be refused with a message that names the file, or be read as what was saved.
What is read as something else is a defect. Which bits are flipped is decided by the seed.
"""

from __future__ import annotations

import collections
import dataclasses
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from t2t_common.io import cli
from t2t_common.io.files import check_target
from tools.command import parse
from tools.reliability import record
from tools.reliability.fuzzing.flipping import FORMATS, Format

EDGE = 1024
"""Bytes of the first and the last region of a file."""
REGIONS = ("start", "middle", "end")
REFUSED, SAME, TENSOR, OTHER, ERROR = (
    "refused",
    "read as saved",
    "a tensor changed in silence",
    "something else changed in silence",
    "another error",
)


@dataclasses.dataclass(frozen=True)
class Flip:
    """What came of one flipped bit."""

    format: str
    region: str
    outcome: str
    detail: str


def flips_of(format_: Format, name: str, count: int, seed: int) -> Iterator[Flip]:
    """`count` flips in what `format_` writes, one after the other."""
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(scratch)
        format_.write(folder)
        whole, reader = format_.read(folder), Random(f"{seed} {name}")
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
        for _ in range(count):
            path, region = reader.choice(files), reader.choice(REGIONS)
            place, bit = _place(path.stat().st_size, region, reader), reader.randrange(8)
            flip(path, place, bit)
            outcome, detail = judge(format_, folder, whole)
            flip(path, place, bit)
            yield Flip(name, region, outcome, f"{path.relative_to(folder)} byte {place} bit {bit}: {detail}")


def _place(size: int, region: str, rng: Random) -> int:
    edge = min(EDGE, size // 3 + 1)
    first, last = {"start": (0, edge), "middle": (min(edge, size - 1), size), "end": (size - edge, size)}[region]
    return rng.randrange(first, last)


def flip(path: Path, place: int, bit: int) -> None:
    """Flips one bit of a file, in place."""
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1 << bit]))


def judge(format_: Format, folder: Path, whole: Mapping[str, Any]) -> tuple[str, str]:
    """Reads what lies in `folder`; what came of it, and which of the parts of `whole` is another."""
    try:
        found = format_.read(folder)
    except ValueError as error:
        text = str(error)
        return (REFUSED if str(folder) in text and "\n" not in text else ERROR), text.replace(f"{folder}/", "")
    except Exception as error:  # what should not get out is what is looked for
        return ERROR, f"{type(error).__name__}: {error}"
    changed = [key for key in {**whole, **found} if whole.get(key) != found.get(key)]
    if not changed:
        return SAME, ""
    return (TENSOR if any(key.startswith("tensor") for key in changed) else OTHER), ", ".join(changed[:3])


def campaign(count: int, seed: int, only: Sequence[str] = ()) -> list[Flip]:
    """`count` flips, spread over all formats, or over those in `only`."""
    names = [name for name in FORMATS if not only or name in only]
    found: list[Flip] = []
    for number, name in enumerate(names):
        share = count // len(names) + (number < count % len(names))
        found += flips_of(FORMATS[name](), name, share, seed)
    return found


def figures(flips: Sequence[Flip]) -> dict[str, Any]:
    """What the page shows."""
    total = collections.Counter(flip.outcome for flip in flips)

    def row(some: Sequence[Flip]) -> dict[str, int]:
        counts = collections.Counter(flip.outcome for flip in some)
        return {"flips": len(some), **{name: counts[name] for name in (REFUSED, SAME, TENSOR, OTHER, ERROR)}}

    return {
        "flips": len(flips),
        "refused": total[REFUSED],
        "read as saved": total[SAME],
        "changed_in_silence": total[TENSOR] + total[OTHER],
        "other errors": total[ERROR],
        "by format": {name: row([f for f in flips if f.format == name]) for name in FORMATS},
        "by region": {region: row([f for f in flips if f.region == region]) for region in REGIONS},
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command line."""

    flips: int = 1000
    """How many, over all formats."""
    seed: int = 0
    """Decides which bits are flipped."""
    only: tuple[str, ...] = ()
    """Formats by name; none takes all."""
    json: Path | None = None
    """File for the result; None takes the recorded one, with `only` none at all."""


def main(args: Sequence[str]) -> int:
    """The command line; 1 if a flip was not noticed."""
    options = parse(Options, args, "tools.reliability.flips", __doc__)
    if unknown := set(options.only) - set(FORMATS):
        raise ValueError(f"no format {sorted(unknown)[0]!r}: it is one of {', '.join(FORMATS)}")
    target = options.json or (None if options.only else record.RESULTS / "flips.json")
    check_target(target)
    start = time.monotonic()
    flips = campaign(options.flips, options.seed, options.only)
    bad = [flip for flip in flips if flip.outcome not in (REFUSED, SAME)]
    for found in bad:
        print(f"{found.format}: {found.outcome}: {found.detail}")
    for name, row in figures(flips)["by format"].items():
        print(f"{name}: {', '.join(f'{value} {key}' for key, value in row.items() if value)}")
    if target is not None:
        command = f"python -m tools.reliability.flips --flips {options.flips} --seed {options.seed}"
        seconds = time.monotonic() - start
        record.write(target, command, figures(flips), seconds=seconds)
    return cli.FAILED if bad else cli.OK


if __name__ == "__main__":
    sys.exit(cli.run(main))
