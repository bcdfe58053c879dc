"""Read `metrics.jsonl` and clean it up when a run resumes.

Damaged lines are moved to a file next to it. If a run starts from step 1 over an existing log, that log is kept too.
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
"""Suffixes added to the log's file name, for its damaged lines and for the log of a run without checkpoints."""

_STEP = re.compile(rb'\s*\{"step": (\d{1,18})[,}]')


class _Line(NamedTuple):
    number: int
    """Line number, from 1."""
    text: bytes
    """Content without the newline."""
    values: dict[str, Any] | None
    """Parsed values; None if the line is damaged."""
    is_cut: bool
    """Whether this is the last line and has no newline: the run was killed while writing it."""


def encode_line(values: Mapping[str, Any]) -> bytes:
    """Encode `values` as one line of the file."""
    return (json.dumps(values) + "\n").encode()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the valid lines of a `metrics.jsonl`, skipping damaged ones; empty if there is no file.

    Raises:
        OSError: The file cannot be read.
    """
    return [line.values for line in _split(path) if line.values is not None]


def last_step(path: Path) -> int:
    """Return the highest step of all lines; 0 if there are none."""
    return max((values["step"] for values in read_lines(path)), default=0)


def continue_lines(path: Path, step: int) -> list[str]:
    """Remove the lines after `step`, which a run resumed there writes again, and return messages for the user.

    Damaged lines are moved to a file next to `path`; if `step` is 0, all lines are.

    Raises:
        ValueError: A file cannot be written; `path` is unchanged.
        OSError: The file cannot be read.
    """
    if not path.exists() and not path.is_symlink():  # a broken link is replaced below, not followed
        return []
    lines = _split(path)
    if step == 0 and lines:
        old = _aside(path, OLD, [line.text for line in lines])
        path.unlink()
        return [f"{path.name} belongs to a run without a checkpoint: kept as {old.name}, as this run starts at step 1"]
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
    """Parse a line; return None if it is invalid."""
    with contextlib.suppress(ValueError, RecursionError):
        values = parse(text.decode("utf-8"))
        if isinstance(values, dict) and type(values.get("step")) is int:
            return values
    return None


def _damaged(lines: list[_Line], step: int) -> list[_Line]:
    """Return the lines that cannot be parsed, and those with a step after `step` that precede a line up to `step`.

    A truncated last line of a later step is not included, since the resumed run writes it again.
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
    """Append `lines` to the file named `path` plus `suffix` and return its path."""
    aside = path.with_name(path.name + suffix)
    before = aside.read_bytes() if aside.is_file() and not aside.is_symlink() else b""
    _replace(aside, before + b"".join(line + b"\n" for line in lines))
    return aside


def _replace(path: Path, content: bytes) -> None:
    with replace_file(path) as temporary:
        temporary.write_bytes(content)
