"""python -m tools.reliability.page [--results FOLDER] [--out FILE]

Writes docs/reliability.md from what the campaigns left in tools/reliability/results.
"""

from __future__ import annotations

import dataclasses
import html
import itertools
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from t2t_common.io import cli
from t2t_common.io.files import write_text
from tools.command import parse
from tools.reliability.record import OWN, RESULTS, ROOT, read
from tools.tables import markdown

PAGE = ROOT / "docs" / "reliability.md"

HEAD = """# Reliability

Written by `python -m tools.reliability.page` from what lies in `tools/reliability/results`. Below each part stands the
command that repeats it, and how long it took; `tools/reliability/README.md` has what it needs. A short form of each is
in the test suite. [Threats](threats.md) has what happens with each kind of hostile file.
"""

CAMPAIGNS = tomllib.loads(Path(__file__).with_name("campaigns.toml").read_text(encoding="utf-8"))
SECTIONS = {name: (campaign["title"], campaign["text"]) for name, campaign in CAMPAIGNS.items()}
"""Campaign: title of its section, and what it does."""
HEADLINES = {name: campaign["headline"] for name, campaign in CAMPAIGNS.items() if "headline" in campaign}
"""Campaign: its figures in one line; without one, the page has them in its section alone."""
COLUMNS = {"faults": ("fault", "package", "times", "survived", "failure", "most_seconds_until_the_line")}
"""Table: the columns that are shown, where it has more than a page can."""


def render(results: Path = RESULTS) -> str:
    """The page. A campaign that was not run yet has a section that says so; one that is not known here comes last."""
    found = read(results)
    known = {
        **SECTIONS,
        **{name: (name.replace("_", " ").capitalize(), "") for name in sorted(found.keys() - SECTIONS)},
    }
    parts = [HEAD, "\n".join(_summary(known, found)) + "\n"]
    for name, (title, text) in known.items():
        body = _section(found[name]) if name in found else ["Not run yet."]
        parts.append("\n".join([f"## {title}", "", *([text, ""] if text else []), *body]) + "\n")
    parts.append("\n".join(["## Defects found", "", *_defects(known, found)]) + "\n")
    if found:
        parts.append("\n".join(["## Machines", "", *_machines(known, found)]) + "\n")
    return "\n".join(parts)


def _summary(known: Mapping[str, tuple[str, str]], found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Every campaign in one line."""
    rows = []
    for name, (title, _) in known.items():
        address = title.lower().replace(" ", "-")
        rows.append([f"[{title}](#{address})", _headline(name, found[name]) if name in found else "not run yet"])
    defects = sum(len(result["defects"]) for result in found.values())
    yield from markdown(
        ["campaign", "result"],
        [*rows, ["[Defects found](#defects-found)", f"{defects}, all of them fixed" if defects else "none"]],
    )


def _headline(name: str, result: Mapping[str, Any]) -> str:
    try:
        return _cell(HEADLINES[name].format_map(result))
    except KeyError:
        return "see below"


def _section(result: Mapping[str, Any]) -> Iterator[str]:
    figures = {name: value for name, value in result.items() if name not in OWN}
    plain = {name: value for name, value in figures.items() if not _is_table(value)}
    if plain:
        yield from markdown(["figure", "value"], [[_words(name), _cell(value)] for name, value in plain.items()])
        yield ""
    for name, value in figures.items():
        if _is_table(value):
            yield from (f"### {_words(name)}", "", *_rows(value, COLUMNS.get(name, ())), "")
    yield _origin(result)


def _origin(result: Mapping[str, Any]) -> str:
    """How to repeat it, and how long it took."""
    took = f", {_duration(result['seconds'])}" if "seconds" in result else ""
    return f"`{result['command']}`{took}."


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


# --- Tables -------------------------------------------------------------------------------------------------


def _is_table(value: Any) -> bool:
    rows = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return bool(rows) and all(isinstance(row, Mapping) for row in rows)


def _rows(found: Any, shown: Sequence[str] = ()) -> Iterator[str]:
    """A list of rows, or rows by name, as a table with all their columns, or those `shown` that a row has."""
    named = isinstance(found, Mapping)
    rows: list[Mapping[str, Any]] = [{"": name, **row} for name, row in found.items()] if named else list(found)
    columns = list(dict.fromkeys(column for row in rows for column in row if not shown or column in shown))
    yield from markdown([_words(c) for c in columns], [[_cell(row.get(c, "")) for c in columns] for row in rows])


def _words(name: str) -> str:
    text = name.replace("_", " ")
    return text[:1].upper() + text[1:]


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "**no**", None: ""}[value]
    if value in ([], {}):
        return "none"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{_words(str(name)).lower()} {_cell(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    return _text(str(value))


def _text(text: str) -> str:
    """Any text as it is, in one line; but for code in backquotes, which is taken for such."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()).replace("|", "\\|"))
    plain = [re.sub(r"([*\[\]])", r"\\\1", html.escape(part, quote=False)) for part in parts[::2]]
    return "".join(part for pair in itertools.zip_longest(plain, parts[1::2], fillvalue="") for part in pair)


def _defects(known: Mapping[str, tuple[str, str]], found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    rows = [
        [title, _cell(defect["what"]), f"`{defect['test']}`"]
        for name, (title, _) in known.items()
        for defect in found.get(name, {}).get("defects", ())
    ]
    if rows:
        yield f"Found on the way: {len(rows)}. Each is fixed, and a test holds the fix."
        yield ""
        yield from markdown(["found by", "what went wrong", "held by"], rows)
    else:
        yield "None."


def _machines(known: Mapping[str, tuple[str, str]], found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What the campaigns ran on, one line for all that ran on the same."""
    titles: dict[str, list[str]] = {}
    for name, (title, _) in known.items():
        if name in found:
            titles.setdefault(_cell(found[name]["environment"]), []).append(title)
    yield from markdown(["campaigns", "ran on"], [[", ".join(names), place] for place, names in titles.items()])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command line."""

    results: Path = RESULTS
    """Folder of what the campaigns found."""
    out: Path = PAGE
    """The page to write."""


def main(args: Sequence[str]) -> int:
    options = parse(Options, args, "tools.reliability.page", __doc__)
    write_text(options.out, render(options.results))
    return cli.OK


if __name__ == "__main__":
    sys.exit(cli.run(main))
