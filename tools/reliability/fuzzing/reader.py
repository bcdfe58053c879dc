"""What a reader of the product is to a campaign: samples it reads, what is made of them, and how it is called."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from tools.reliability.fuzzing.mutate import Tree


@dataclasses.dataclass(frozen=True)
class Reader:
    """One reader.

    Attributes:
        samples: makes folders that it reads.
        change: makes a damaged or hostile folder of one of them.
        read: reads the folder; what it raises, if anything, has to be a ValueError or an OSError that names a file.
        writes: what it may leave behind, as patterns: paths in the folder, or beside it below `cache/` and `tmp/`.
        names: what else a message may name.
        seconds: of the processor, after which it hangs.
        megabytes: by which a case may raise the memory of the process at most.
    """

    samples: Callable[[], Sequence[Tree]]
    change: Callable[[Tree, Random], Tree]
    read: Callable[[Path], object]
    writes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    seconds: float = 10.0
    megabytes: int = 256

    @functools.cached_property
    def trees(self) -> Sequence[Tree]:
        """The samples, made once."""
        return self.samples()


def find_reader(name: str) -> Reader:
    """The reader of a dotted name: a function, in a module, that makes it."""
    module, _, function = name.rpartition(".")
    return getattr(importlib.import_module(module), function)()


def case_of(reader: Reader, name: str, seed: int, number: int) -> Tree:
    """The folder of case `number`; the first ones are the samples, unchanged."""
    if number < len(reader.trees):
        return reader.trees[number]
    rng = Random(f"{seed} {name} {number}")
    return reader.change(dict(rng.choice(reader.trees)), rng)
