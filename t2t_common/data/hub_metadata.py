"""Names of columns and classes in data sets of the Hugging Face Hub, as its library `datasets` writes them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from t2t_config.class_names import imagenet_classes
from t2t_config.text import escaped
from t2t_config.weights.json_limits import parse

MOST_TEXT = 1 << 26
"""Maximum size of a metadata file in bytes."""

NEARLY_ALL = 0.98
"""Fraction of names above which a list of 1000 is ImageNet's."""


def hub_features(schema: Any) -> dict[str, dict[str, Any]]:
    """Return the description of each column in an Arrow schema's metadata; {} if there is none or it is damaged."""
    text = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        found = _below(parse(text), "info", "features")
    except (ValueError, RecursionError):
        return {}
    return {name: kind for name, kind in found.items() if isinstance(kind, dict)} if isinstance(found, dict) else {}


def hub_class_names(schema: Any, folder: Path, label: str) -> list[str] | None:
    """Return the class names of the column `label`; None if they are nowhere.

    They are in the schema, else in `dataset_infos.json`, else in the header of `README.md`, in `folder` or its parent.
    """
    places = [folder, folder.parent]
    found: list[Any] = [hub_features(schema).get(label, {}).get("names")]
    found += [names for place in places for names in _in_infos(place / "dataset_infos.json", label)]
    found += [_in_readme(place / "README.md", label) for place in places]
    return next(([escaped(name.strip()) for name in names] for names in found if _are_names(names)), None)


def as_imagenet(names: list[str]) -> tuple[list[str], list[str]]:
    """Return class names and notes on them: ImageNet-1k's wnids if these are its words, in its order.

    The Hub's list spells one name differently ("crane2", as there are two cranes), so a few may differ.
    """
    words = imagenet_classes()
    alike = sum(name == known for name, known in zip(names, words.values(), strict=False))
    if len(names) != len(words) or alike < NEARLY_ALL * len(words):
        return names, []
    note = "" if alike == len(words) else f", {len(words) - alike} spelled differently"
    return list(words), [f"the classes are those of ImageNet-1k, in its order{note}"]


def _are_names(names: Any) -> bool:
    return isinstance(names, list) and bool(names) and all(isinstance(name, str) and name.strip() for name in names)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") if path.stat().st_size <= MOST_TEXT else ""
    except (OSError, UnicodeDecodeError):
        return ""


def _in_infos(path: Path, label: str) -> Sequence[Any]:
    """Return the class names in each configuration of a `dataset_infos.json`."""
    try:
        found = parse(_text(path) or "{}")
    except (ValueError, RecursionError):
        return []
    return [_below(config, "features", label, "names") for config in found.values()] if isinstance(found, dict) else []


def _in_readme(path: Path, label: str) -> list[str] | None:
    """Return the class names in the YAML header of a README, in the form in which the Hub writes it:

    - name: label
      dtype:
        class_label:
          names:
            '0': tench, Tinca tinca
    """
    header = re.match(r"---\n(.*?\n)---", _text(path), re.DOTALL)
    start = re.compile(rf"- name: {re.escape(label)}\n +dtype:\n +class_label:\n +names:\n((?: +'?\d+'?: .*\n)+)")
    found = start.search(header[1]) if header else None
    lines = [line.strip().split(": ", 1) for line in found[1].splitlines()] if found else []
    in_order = [number.strip("'") for number, _ in lines] == [str(number) for number in range(len(lines))]
    return [_unquoted(name) for _, name in lines] if in_order else None


def _unquoted(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] == "'":
        return text[1:-1].replace("''", "'")
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text


def _below(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value
