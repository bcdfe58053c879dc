"""Names of classes: of ImageNet-1k, from a file, or those that a checkpoint holds."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from t2t_config.text import escaped, few

LISTED = 20
"""Classes of a list that an error message names."""


@functools.cache
def imagenet_classes() -> Mapping[str, str]:
    """wnid -> words ("n01440764" -> "tench, Tinca tinca") of the 1000 classes in the order of the head.

    Source: WordNet 3.0 (its notice is in the file), by tools/imagenet_classes.py.
    """
    text = files("t2t_config").joinpath("imagenet_classes.tsv").read_text(encoding="utf-8")
    return dict(line.split("\t") for line in text.splitlines() if not line.startswith("#"))


def class_names(num_classes: int, *, file: Path | None = None, saved: Sequence[str] | None = None) -> list[str]:
    """A name for each of `num_classes` outputs.

    From `file`; else those `saved` with the weights; else ImageNet-1k's for 1000 classes; else "class 17". A name that
    is a wnid of ImageNet-1k (its folders are called so) is put into words; outputs beyond the names are "class 17" too.
    Characters that cannot be printed are escaped.

    Args:
        num_classes: width of the head.
        file: one name per line, or JSON: a list, or names by index ({"0": "cat", ...}).
        saved: names in a checkpoint's metadata.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is unreadable, or does not hold `num_classes` names.
    """
    words = imagenet_classes()
    if file is not None:
        names = read_names(file)
        if len(names) != num_classes:
            raise ValueError(f"{file} holds {len(names)} class names, the model has {num_classes}: give one for each")
    elif saved:
        if not isinstance(saved, list | tuple):
            raise ValueError(f"the weights name their classes {str(saved)[:40]!r}, no list: give a file of names")
        names = [str(name) for name in saved][:num_classes]
    else:
        names = list(words) if num_classes == len(words) else []
    numbered = [f"class {index}" for index in range(len(names), num_classes)]
    return [escaped(words.get(name, name)) for name in names] + numbered


def match_classes(data: Sequence[str], known: Sequence[str]) -> list[int] | None:
    """Where each class of `data` is in `known`, by its name; None where one is not there, or more than once.

    A wnid of ImageNet-1k and its words are one name.
    """
    words = imagenet_classes()
    for spelled in (escaped, lambda name: escaped(words.get(name, name))):
        ours, theirs = [spelled(name) for name in data], [spelled(name) for name in known]
        if ours == theirs:
            return list(range(len(ours)))
        places = {name: place for place, name in enumerate(theirs)}
        if len(places) == len(theirs) and len(set(ours)) == len(ours) and places.keys() >= set(ours):
            return [places[name] for name in ours]
    return None


def both_lists(known: Sequence[str], data: Sequence[str], whose: tuple[str, str] = ("named", "there")) -> str:
    """Two lists of classes in words, as far as one line can hold them."""
    return f"{whose[0]}: {few(known, LISTED)}; {whose[1]}: {few(data, LISTED)}"


def read_names(file: Path) -> list[str]:
    """The names in a file: one per line, or JSON, a list or names by index.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is unreadable.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no file of class names at {file}: check the path")
    try:
        text = file.read_text(encoding="utf-8").rstrip()
        names = json.loads(text) if file.suffix == ".json" else [line.strip() for line in text.splitlines()]
        if isinstance(names, dict):
            names = [names[str(index)] for index in range(len(names))]
    except (
        ValueError,
        KeyError,
        RecursionError,
    ) as error:  # no UTF-8, no JSON, an index left out
        raise ValueError(f"cannot read the class names in {file} ({error}): one per line, or a JSON list") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{file} holds no JSON list of names: write one name for each class")
    return names
