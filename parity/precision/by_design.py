"""Which narrow formats are by design in a pair of models, and what is judged otherwise because of them.

A layer may ask for float32 whatever it is given: RMSNorm's `x.to(torch.float32)`, a softmax in float32, the tables of
rotary embeddings. Where the reference does so the port may too, and the float64 run of both leaves these casts out
(`wide_torch`, `wide_jax`). Where the port alone does so it is a leak, unless a library does it unasked.

Numbers made before the run, a table of float32 sines, cannot be made whole again. If both sides hold the same ones,
nothing is lost; else the module that uses them is held to the gate of two float32 runs against each other.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr

from parity.precision.casts import FRACTION, Cast, wider
from parity.precision.jax_casts import casts, tables_of
from parity.precision.wide_torch import Wide

Table = tuple[str, np.ndarray]
"""Module and numbers of an array that was made in a narrow format before the run."""


@dataclasses.dataclass(frozen=True, eq=False)
class Design:
    """What both models ask for, and which of it is by design.

    Attributes:
        ours, theirs: narrow formats that PyTorch's and JAX's model ask for, each under its own paths.
        our_tables, their_tables: narrow arrays that they hold, apart from their weights.
        partners: JAX's path -> PyTorch's, of the modules that are compared.
        scalars: Python numbers that the models use.
        granted: modules (PyTorch's paths) in which every cast of JAX's counts as by design.
    """

    ours: tuple[Cast, ...] = ()
    theirs: tuple[Cast, ...] = ()
    our_tables: tuple[Table, ...] = ()
    their_tables: tuple[Table, ...] = ()
    partners: Mapping[str, str] = dataclasses.field(default_factory=dict)
    scalars: frozenset[float] = frozenset()
    granted: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls,
        asked: Wide,
        buffers: Iterable[Table],
        program: tuple[ClosedJaxpr, Sequence[Any], Iterable[float]],
        partners: Mapping[str, str],
    ) -> Design:
        """From a run of PyTorch's model, its unsaved buffers, and JAX's program (see `JaxSide.program`)."""
        closed, args, numbers = program
        held = [(path, array) for (path, _), array in asked.tables.items()]
        ours, theirs = tuple(asked.casts), tuple(casts(closed, asked.precision))
        tables = tuple(tables_of(closed, args, asked.precision))
        return cls(ours, theirs, (*buffers, *held), tables, partners, frozenset({*asked.scalars, *numbers}))

    def allows(self, cast: Cast) -> bool:
        """Whether a cast of JAX's is by design: a library's own, or the reference has one as narrow there too."""
        if cast.library and cast.format == "float32":
            return True
        module = self._partner(cast.module)
        return module in self.granted or self._allowed(module, FRACTION.get(cast.format, 0), cast.made)

    def _allowed(self, module: str, bits: int, made: bool) -> bool:
        near = self._near(module)
        if any(FRACTION[cast.format] <= bits and path in near for path, cast in self._casts):
            return True
        if not made:
            return False
        held = any(path in near or _inside(module, path) for path in self._our_tables)
        return held or any(FRACTION[cast.format] <= bits and path in near for path, cast in self._made)

    @functools.cached_property
    def _casts(self) -> list[tuple[str, Cast]]:
        return [(self._nearest(cast.module), cast) for cast in self.ours if not cast.made]

    @functools.cached_property
    def _made(self) -> list[tuple[str, Cast]]:
        return [(self._nearest(cast.module), cast) for cast in self.ours if cast.made]

    @functools.cached_property
    def _our_tables(self) -> set[str]:
        return {self._nearest(path) for path, numbers in self.our_tables if inexact(numbers)}

    @functools.cached_property
    def _paths(self) -> set[str]:
        return set(self.partners.values())

    def _nearest(self, path: str) -> str:
        """The innermost compared module at or around a path of PyTorch's."""
        while path and path not in self._paths:
            path = path.rpartition(".")[0]
        return path

    def _partner(self, path: str) -> str:
        """The same for a path of JAX's."""
        while path and path not in self.partners:
            path = path.rpartition(".")[0]
        return self.partners.get(path, "")

    def _near(self, module: str) -> set[str]:
        """The module, the one around it and those right inside it: where a cast may stand instead.

        The model itself is near only to modules without parts: else one cast of its output would excuse every block.
        """
        around = None if not module else self._nearest(module.rpartition(".")[0])
        near = {module, *(path for path in self._paths if path and self._nearest(path.rpartition(".")[0]) == module)}
        if not module:
            return {path for path in near if not self._parts(path)} | {""}
        return near | ({around} if around or not self._parts(module) else set())  # type: ignore[arg-type]

    def _parts(self, module: str) -> bool:
        return any(_inside(path, module) for path in self._paths)

    def ours_widen(self, precision: str) -> bool:
        return any(wider(cast.format, precision) for cast in self.ours)

    def theirs_widen(self, precision: str) -> bool:
        """Whether JAX's run in this precision has casts to leave out."""
        if any(wider(cast.format, precision) and self.allows(cast) for cast in self.theirs):
            return True
        formats = [Cast(path, "float32", made=True) for path, numbers in self.their_tables if inexact(numbers)]
        return precision == "float64" and any(self.allows(cast) for cast in formats)

    @functools.cached_property
    def tabled(self) -> set[str]:
        """Modules (PyTorch's paths) that work with float32 tables which may differ in their last digit."""
        found = set(self._our_tables)
        theirs = [path for path, numbers in self.their_tables if inexact(numbers)]
        theirs += [cast.module for cast in self.theirs if cast.made and self._our_tables]
        made = (Cast(path, "float32", made=True) for path in theirs)
        return found | {self._partner(cast.module) for cast in made if self.allows(cast)}

    def leaks(self) -> dict[str, str]:
        """Module (PyTorch's path) -> the port's own casts there that the reference does not have."""
        found: dict[str, list[str]] = {}
        for cast in self.theirs:
            if not cast.made and not self.allows(cast):
                at = f" at {cast.where}" if cast.where else ""
                found.setdefault(self._partner(cast.module), []).append(f"{cast.format}{at}")
        return {path: ", ".join(dict.fromkeys(texts)) for path, texts in found.items()}

    def narrows(self, module: str) -> bool:
        """Whether JAX's run still narrows anything in a module (PyTorch's path), around it or right inside it."""
        near = self._near(module) | {""}
        return any(self._partner(cast.module) in near for cast in self.theirs if not self.allows(cast))

    @property
    def tables(self) -> tuple[Table, ...]:
        return (*self.our_tables, *self.their_tables)

    def notes(self) -> tuple[str, ...]:
        """What is by design, a sentence per format."""
        entries = [(cast.format, self._nearest(cast.module), cast.where) for cast in self.ours if not cast.made]
        taken = {(format_, path) for format_, path, _ in entries}
        for cast in self.theirs:
            path = self._partner(cast.module)
            if (
                not cast.made
                and self.allows(cast)
                and not any(f == cast.format and path in self._near(p) for f, p in taken)
            ):
                entries.append((cast.format, path, cast.where))
        formats = sorted({format_ for format_, _, _ in entries}, key=lambda name: -FRACTION[name])
        return tuple(
            f"{format_} by design in: {_listed((path, where) for f, path, where in entries if f == format_)}"
            for format_ in formats
        )


SHOWN = 3
"""So many modules of one line of source are named."""


def _listed(entries: Iterable[tuple[str, str]]) -> str:
    """Modules grouped by the line that casts: `blocks.0.norm1, blocks.0.norm2 and 22 more (norm.py:12)`."""
    by_line: dict[str, list[str]] = {}
    for path, where in dict.fromkeys(entries):
        by_line.setdefault(where, []).append(path or "the model")
    parts = []
    for where, paths in by_line.items():
        more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
        parts.append(", ".join(paths[:SHOWN]) + more + (f" ({where})" if where else ""))
    return ", ".join(parts)


def _inside(path: str, module: str) -> bool:
    return path != module and (not module or path.startswith(module + "."))


def inexact(numbers: np.ndarray) -> bool:
    """Whether an array holds numbers of more than 11 binary digits: masks, counts and powers of two do not."""
    finite = numbers[np.isfinite(numbers) & (np.abs(numbers) < np.finfo(np.float32).max)]
    digits = np.frexp(finite)[0] * 2.0**11
    return bool((digits != np.rint(digits)).any())
