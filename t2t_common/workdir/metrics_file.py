"""The lines of `metrics.jsonl`: read, and sorted out when a run continues. No line is lost: one that is damaged is kept
in a file beside it, and the log of a run that begins anew in the same place too.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from t2t_common.io.files import replace_file
from t2t_config.weights.json_limits import parse

METRICS_FILE = "metrics.jsonl"
DAMAGED, OLD = ".damaged", ".old"
"""Added to a log's name: what could not be read in it; the log of a run that left no checkpoint."""

_STEP = re.compile(rb'\s*\{"step": (\d{1,18})[,}]')


class _Line(NamedTuple):
    number: int
    """From 1."""
    text: bytes
    """Without its end."""
    values: dict[str, Any] | None
    """None where the line is damaged."""
    is_cut: bool
    """The last one, and without an end: the run was killed while it wrote it."""


def encode_line(values: Mapping[str, Any]) -> bytes:
    """One line of the file."""
    return (json.dumps(values) + "\n").encode()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl` that can be read, whatever lies between them; none without a file.

    Raises:
        OSError: it cannot be read.
    """
    return [line.values for line in _split(path) if line.values is not None]


def last_step(path: Path) -> int:
    """The highest step of any line; 0 without one."""
    return max((values["step"] for values in read_lines(path)), default=0)


def continue_lines(path: Path, step: int) -> list[str]:
    """Drops the lines after `step`, which a run that continues there will write again; what the user should know, one
    text each.

    What is damaged goes into a file beside it. Without a step that the run continues after, all lines do.

    Raises:
        ValueError: a file cannot be written; `path` stays as it is.
        OSError: it cannot be read.
    """
    if not path.exists() and not path.is_symlink():  # a link that leads nowhere is not followed
        return []
    lines = _split(path)
    if step == 0 and lines:
        old = _aside(path, OLD, [line.text for line in lines])
        path.unlink()
        return [f"{path.name} is of a run that left no checkpoint: kept as {old.name}, as this one begins at step 1"]
    damaged = _damaged(lines, step)
    strangers = {line.number for line in damaged}
    texts = []
    if damaged:
        aside = _aside(path, DAMAGED, [line.text for line in damaged])
        numbers = ", ".join(str(line.number) for line in damaged[:5]) + (", ..." if len(damaged) > 5 else "")
        which = f"line {numbers} is" if len(damaged) == 1 else f"{len(damaged)} lines ({numbers}) are"
        texts = [f"{path.name}: {which} damaged: kept in {aside.name}, all others stay"]
    kept = [
        line.text + b"\n"
        for line in lines
        if line.number not in strangers and line.values is not None and line.values["step"] <= step
    ]
    _replace(path, b"".join(kept))
    return texts


def _split(path: Path) -> list[_Line]:
    if not path.is_file():
        return []
    *whole, rest = path.read_bytes().split(b"\n")
    lines = [_Line(number, text, _values(text), False) for number, text in enumerate(whole, 1) if text.strip()]
    if rest.strip():
        lines.append(_Line(len(whole) + 1, rest, _values(rest), True))
    return lines


def _values(text: bytes) -> dict[str, Any] | None:
    """None where the line makes no sense."""
    with contextlib.suppress(ValueError, RecursionError):
        values = parse(text.decode("utf-8"))
        if isinstance(values, dict) and type(values.get("step")) is int:
            return values
    return None


def _damaged(lines: list[_Line], step: int) -> list[_Line]:
    """Lines that cannot be read, or that say a step after `step` among those that do not.

    Not the last one where it is cut off and of a later step: it will be written again as others are.
    """
    before = [index for index, line in enumerate(lines) if line.values is not None and line.values["step"] <= step]
    damaged = []
    for index, line in enumerate(lines):
        if line.values is not None:
            if line.values["step"] > step and before and index < before[-1]:
                damaged.append(line)
            continue
        found = _STEP.match(line.text)
        if not (line.is_cut and found and int(found[1]) > step):
            damaged.append(line)
    return damaged


def _aside(path: Path, suffix: str, lines: list[bytes]) -> Path:
    """Adds `lines` to the file beside `path`."""
    aside = path.with_name(path.name + suffix)
    before = aside.read_bytes() if aside.is_file() and not aside.is_symlink() else b""
    _replace(aside, before + b"".join(line + b"\n" for line in lines))
    return aside


def _replace(path: Path, content: bytes) -> None:
    with replace_file(path) as temporary:
        temporary.write_bytes(content)
