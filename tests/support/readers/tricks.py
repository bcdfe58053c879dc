"""Readers whose cases are all made to harm: each snippet of a pickle, each trick of an archive."""

from __future__ import annotations

import dataclasses
import io
import zipfile
from random import Random

from tools.reliability.fuzzing import formats, weights
from tools.reliability.fuzzing.mutate import Tree
from tools.reliability.fuzzing.reader import Reader
from tools.reliability.fuzzing.zip_tricks import TRICKS


def _tricked(tree: Tree, rng: Random) -> Tree:
    (path,) = [path for path in tree if path.endswith((".pth", ".pt"))]
    data = tree[path]
    assert isinstance(data, bytes)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(info.filename, archive.read(info), zipfile.ZIP_STORED) for info in archive.infolist()]
    if rng.random() < 0.2:
        return {**tree, path: rng.choice(list(TRICKS.values()))(formats.zipped(members))}
    snippet = rng.choice(formats.SNIPPETS)
    found = [
        (name, content[:2] + snippet + content[2:] if name.endswith(".pkl") else content, kind)
        for name, content, kind in members
    ]
    return {**tree, path: formats.zipped(found)}


def pth() -> Reader:
    return dataclasses.replace(weights.pth(), change=_tricked)


def label_map() -> Reader:
    return dataclasses.replace(weights.label_map(), change=_tricked)
