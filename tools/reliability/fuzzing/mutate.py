"""Changes to bytes, to JSON and to folders, whatever they mean; formats.py knows what some of them mean.

A change takes a sample and a generator of random numbers, which decides everything.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

Change = Callable[[bytes, Random], bytes]
"""(sample, random numbers) -> what a damaged or hostile file has in its place."""


@dataclasses.dataclass(frozen=True)
class Link:
    """A symbolic link in a `Tree`."""

    target: str


Tree = dict[str, bytes | Link | None]
"""Relative path -> content of a file, a link, or (None) a folder."""

TRICKS = (
    *("../escaped", "../../escaped", "..%2Fescaped", "..\\escaped", "/tmp/t2t-escaped", "~/escaped", "C:\\escaped"),
    *(
        "a/../../escaped",
        ".",
        "..",
        "",
        " ",
        "\x1b[31mred",
        "line\nbreak",
        "x" * 250,
        "\u00b2",
        "007",
        "%s%n",
        "\udcff",
    ),
)
"""Names that a path must not follow, or a message not repeat as they are."""

INTEGERS = (
    *(0, 1, -1, 7, 127, 128, 255, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1),
)
"""Sizes and numbers at which arithmetic turns."""

TEXT_NUMBERS = tuple(
    text.encode() for text in ("-1", "0", "1e999", "NaN", "-Infinity", "9" * 25, "9" * 5000, "1e-300", "0x7f", "1_0")
)


def damaged(data: bytes, rng: Random) -> bytes:
    """One to three changes that know nothing of the format."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        data = rng.choice(_DAMAGES)(data, rng)
    return data


def _flip(data: bytes, rng: Random) -> bytes:
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8)) if data else 0):
        found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    return bytes(found)


def _cut(data: bytes, rng: Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _span(data: bytes, rng: Random) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.choice((1, 2, 4, 8, 16, 64, 512, 1024)))


def _remove(data: bytes, rng: Random) -> bytes:
    start, end = _span(data, rng)
    return data[:start] + data[end:]


def _repeat(data: bytes, rng: Random) -> bytes:
    start, end = _span(data, rng)
    return data[:end] + data[start:end] * rng.choice((1, 2, 50)) + data[end:]


def _insert(data: bytes, rng: Random) -> bytes:
    start = rng.randrange(len(data) + 1)
    return data[:start] + rng.randbytes(rng.choice((1, 4, 30))) + data[start:]


def _blank(data: bytes, rng: Random) -> bytes:
    start, end = _span(data, rng)
    return data[:start] + rng.choice((b"\0", b"\xff", b" ")) * (end - start) + data[end:]


def _number(data: bytes, rng: Random) -> bytes:
    """Some bytes become a number of one of `INTEGERS`: most length fields are such bytes."""
    width, order = rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
    number = (rng.choice((*INTEGERS, len(data), 2 * len(data))) % 2 ** (8 * width)).to_bytes(width, order)  # type: ignore[arg-type]
    start = rng.randrange(len(data) + 1)
    return data[:start] + number + data[start + width :]


def _text_number(data: bytes, rng: Random) -> bytes:
    """A number written in digits becomes another."""
    found = list(re.finditer(rb"\d+", data))
    if not found:
        return _number(data, rng)
    place = rng.choice(found)
    return data[: place.start()] + rng.choice(TEXT_NUMBERS) + data[place.end() :]


def _swap(data: bytes, rng: Random) -> bytes:
    one, two = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[two:] + data[one:two] + data[:one]


_DAMAGES: Sequence[Change] = (
    *(_flip, _flip, _cut, _remove, _repeat, _insert, _blank, _number, _number, _text_number, _swap),
)


# --- JSON ---------------------------------------------------------------------------------------------------

VALUES: Sequence[Any] = (
    *(None, True, False, "", [], {}, 0, 1, -1, 2, 0.5, -0.0, 1e-300, 1e308, -1e308, math.nan, math.inf, -math.inf),
    *(10**9, 2**31, 2**63, 10**30, 10**400, -(10**12), "1", "nan", "x" * 5000, [[]], [1, 2, 3], [None], {"": None}),
    *([0] * 3000, {"a": {"b": {"c": [1]}}}, "<script>alert(1)</script>", *TRICKS[:-1]),
)
"""What stands in the place of something else."""


def damaged_json(data: bytes, rng: Random) -> bytes:
    """Another document: values changed, keys left out, lists grown, far too deep; now and then only its bytes."""
    chance = rng.random()
    if chance < 0.15:
        return damaged(data, rng)
    if chance < 0.20:
        return _too_deep(data, rng)
    value = json.loads(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        value = other_value(value, rng)
    return json.dumps(value).encode("utf-8", "replace")


def _too_deep(data: bytes, rng: Random) -> bytes:
    """Brackets in the place of a number or text."""
    depth = rng.choice((300, 900, 1500, 100_000))
    opening, closing = rng.choice(((b"[", b"]"), (b'{"a":', b"}")))
    nest = opening * depth + b"1" + closing * depth
    found = list(re.finditer(rb'(?<=[:\[,] )("[^"]*"|[-\d.]+)(?=[,\]}\n])', data))
    if not found or rng.random() < 0.2:
        return nest
    place = rng.choice(found)
    return data[: place.start()] + nest + data[place.end() :]


def other_value(value: Any, rng: Random) -> Any:
    """`value` with something in it changed."""
    inside = isinstance(value, dict | list) and value and rng.random() < 0.85
    if not inside:
        return rng.choice(VALUES)
    if isinstance(value, dict):
        key = rng.choice(list(value))
        chance = rng.random()
        if chance < 0.12:
            return {name: item for name, item in value.items() if name != key}
        if chance < 0.17:
            return {**value, rng.choice(TRICKS[:-1]): value[key]}
        return {**value, key: other_value(value[key], rng)}
    place, chance = rng.randrange(len(value)), rng.random()
    if chance < 0.12:
        return value[:place] + value[place + 1 :]
    if chance < 0.17:
        return value[:place] + [value[place]] * rng.choice((2, 50)) + value[place:]
    return [*value[:place], other_value(value[place], rng), *value[place + 1 :]]


# --- Folders ------------------------------------------------------------------------------------------------


def damaged_tree(tree: Tree, rng: Random, change: Change = damaged) -> Tree:
    """A folder with one of its files changed, or missing, or something else than a file."""
    files = [name for name, content in tree.items() if isinstance(content, bytes)]
    name, chance = rng.choice(files), rng.random()
    content = tree[name]
    assert isinstance(content, bytes)
    rest = {path: item for path, item in tree.items() if path != name}
    if chance < 0.90:
        return {**tree, name: change(content, rng)}
    if chance < 0.92:
        return rest
    if chance < 0.94:
        return {**rest, name: None}
    if chance < 0.96:
        return {
            **rest,
            name: Link(rng.choice((name.rpartition("/")[2], "nowhere", "/etc/passwd", "../outside/kept", "/etc"))),
        }
    if chance < 0.98:
        return {**tree, name: b""}
    return {**tree, name: rng.choice([item for item in tree.values() if isinstance(item, bytes)])}


def write_tree(tree: Tree, folder: Path) -> None:
    """Makes the files of `tree` in `folder`; names that no file system takes are left out."""
    for name, content in tree.items():
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                path.mkdir(exist_ok=True)
            elif isinstance(content, Link):
                path.symlink_to(content.target)
            else:
                path.write_bytes(content)
        except (OSError, ValueError):
            continue
