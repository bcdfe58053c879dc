"""Rephrasing of tyro's option errors as one line: the option, its value and the expected value.

tyro prints boxes of several lines with titles, Python types and the help texts of options.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Sequence

STYLE = re.compile(r"\x1b\[[0-9;]*m|\[/?bold\]")
BOX = re.compile(r"^[\u2500-\u257f]* ?|[\u2500-\u257f ]+$")
OPTION = re.compile(r"--[a-zA-Z][\w-]*")


def rephrase(said: str, prog: str) -> str:
    """Rephrase tyro's error message about options of `prog` as one line.

    Args:
        said: Output of tyro, with boxes and colours, without wrapped lines.
        prog: Command to name in the hint at its help.
    """
    lines = [BOX.sub("", STYLE.sub("", line)) for line in said.splitlines()]
    lines, hint = _without_hint([line for line in lines if line.strip(" -")])
    told = " ".join(" ".join(lines).split())
    problem = _missing(lines) or _unknown(told) or _choice(told) or _value(told, lines) or told
    return f"{problem} (see {hint or prog} --help)"


def _without_hint(lines: Sequence[str]) -> tuple[list[str], str]:
    """Return the lines before the hint at the full help, and the command that the hint names."""
    for i, line in enumerate(lines):
        found = re.match(r"\s*For full helptext, (?:run|see):?(.*)", line)
        if found is not None:
            rest = " ".join([found[1], *lines[i + 1 :]])
            return list(lines[:i]), " ".join(rest.partition(" --help")[0].split())
    return list(lines), ""


def _missing(lines: Sequence[str]) -> str | None:
    """Describe missing required options, or the first unknown option given in their place."""
    start = next((i for i, line in enumerate(lines) if "Missing from" in line), None)
    if start is None:
        return None
    depth = len(lines[start]) - len(lines[start].lstrip())
    names: list[str] = []
    unknown: list[str] = []
    found = names
    for line in lines[start + 1 :]:
        inside = len(line) - len(line.lstrip()) - depth
        if line.strip().startswith("Unrecognized"):
            found = unknown
        elif 0 < inside <= 4:
            found.append(line.strip())
    wrong = _first([word for line in unknown for word in line.split()])
    if wrong is not None:
        return _no_such(wrong, [name.split()[0] for name in names])
    return f"missing: {', '.join(names)}"


def _unknown(told: str) -> str | None:
    found = re.search(r"Unrecognized (?:or misplaced )?options: (?!Unrecognized)(.*)", told)
    if found is None:
        return None
    tokens, _, rest = re.sub(r"^.*Unrecognized (?:or misplaced )?options: ", "", found[0]).partition(
        "Perhaps you meant:"
    )
    tokens, _, commands = tokens.partition("Available subcommands:")
    wrong = _first(re.split(r"[\s,]+", tokens.strip())) or tokens.strip()
    if commands:
        known = [name.strip() for name in commands.split(",")]
        close = difflib.get_close_matches(wrong, known, 1)
        return f"no command {wrong!r}: " + (
            f"did you mean {close[0]}?" if close else f"choose one of {', '.join(known)}"
        )
    return _no_such(wrong, OPTION.findall(rest)[:1], certain=True)


def _no_such(wrong: str, known: Sequence[str], *, certain: bool = False) -> str:
    kind = "option" if wrong.startswith("-") else "argument"
    close = list(known[:1]) if certain else difflib.get_close_matches(wrong, known, 1)
    return f"unknown {kind} {wrong}" + (f": did you mean {close[0]}?" if close else "")


def _first(tokens: Sequence[str]) -> str | None:
    """Return the invalid token: an option rather than the values that follow it."""
    tokens = [token for token in tokens if token]
    return next((token for token in tokens if token.startswith("-")), tokens[0] if tokens else None)


def _choice(told: str) -> str | None:
    found = re.search(r"invalid choice '(.*?)' for argument '?(.*?)'?\. Expected one of \((.*?)\)\.", told)
    if found is not None:
        choices = [name for name in re.findall(r"'([^']*)'", found[3]) if name != "None"]
        return f"{_name(found[2])}: {found[1]!r} is not one of {', '.join(choices)}"
    found = re.search(r"Missing value for argument (.*?)\. Expected", told)
    if found is None:
        return None
    name = _name(found[1])
    return f"{name} needs a value" if name.startswith("-") else f"missing: {name}"


def _name(text: str) -> str:
    """Return `--lr` for ('--lr',), or a positional argument in upper case, as in the usage line."""
    found = OPTION.search(text)
    return text.strip("'(),").upper() if found is None else found[0]


def _value(told: str, lines: Sequence[str]) -> str | None:
    found = re.search(r"Error parsing (.*?): (.*?)(?: Argument helptext: (.*))?$", told)
    if found is None:
        return None
    name, reason, described = found.groups()
    if described is None:  # a dataclass that rejects its options; its message names them
        return reason
    value = re.search(r"string to float: (.*)$", reason)
    if value is not None:
        return f"{name}: {value[1]} is not a number"
    value = re.search(r"with base 10: (.*)$", reason)
    if value is not None:
        return f"{name}: {value[1]} is not a whole number"
    value = re.search(r"could be instantiated from \[(.*?)\]\.", reason)
    if value is not None:
        given = " ".join(re.findall(r"'([^']*)'", value[1]))
        wanted = next(after.strip() for line, after in itertools.pairwise(lines) if "Argument helptext" in line)
        return f"{name}: {given!r} is not {wanted.removeprefix(name).strip()}"
    return f"{name}: {reason}"
