"""Decide which narrow formats are by design in a pair of models, and which gates change because of them.

A layer may use float32 whatever its input dtype: RMSNorm's `x.to(torch.float32)`, a softmax in float32, the tables of
rotary embeddings. If the reference does so, the port may too, and the float64 runs of both remove these casts
(`wide_torch`, `wide_jax`). If only the port does so, it is a leak, unless a library casts on its own.

Values computed before the run, such as a table of float32 sines, cannot be restored to float64. If both sides have the
same values, nothing is lost; else the module that uses them is judged by the gate between two float32 runs.
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
"""Module and values of an array that was computed in a narrow format before the run."""


@dataclasses.dataclass(frozen=True, eq=False)
class Design:
    """The narrow formats that both models request, and which of them are by design.

    Attributes:
        ours, theirs: Casts to narrow formats in PyTorch's and JAX's model, each with its own paths.
        our_tables, their_tables: Narrow arrays of the models other than their weights.
        partners: Maps JAX's paths to PyTorch's, for the modules that are compared.
        scalars: Python numbers that the models use.
        granted: Modules (PyTorch's paths) in which every cast of JAX's is considered by design.
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
        """Create from a run of PyTorch's model, its non-persistent buffers, and JAX's program (`JaxSide.program`)."""
        closed, args, numbers = program
        held = [(path, array) for (path, _), array in asked.tables.items()]
        ours, theirs = tuple(asked.casts), tuple(casts(closed, asked.precision))
        tables = tuple(tables_of(closed, args, asked.precision))
        return cls(ours, theirs, (*buffers, *held), tables, partners, frozenset({*asked.scalars, *numbers}))

    def allows(self, cast: Cast) -> bool:
        """Return whether a cast of JAX's is by design: a library's own, or as narrow as one of the reference there."""
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
        """Return the innermost compared module at or around one of PyTorch's paths."""
        while path and path not in self._paths:
            path = path.rpartition(".")[0]
        return path

    def _partner(self, path: str) -> str:
        """Return the same for one of JAX's paths."""
        while path and path not in self.partners:
            path = path.rpartition(".")[0]
        return self.partners.get(path, "")

    def _near(self, module: str) -> set[str]:
        """Return the module, its parent and its children: the places where the corresponding cast may be.

        The root model is near only to modules without children: otherwise one cast of its output would allow casts in
        every block.
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
        """Return whether JAX's run in this precision has casts to remove."""
        if any(wider(cast.format, precision) and self.allows(cast) for cast in self.theirs):
            return True
        formats = [Cast(path, "float32", made=True) for path, numbers in self.their_tables if inexact(numbers)]
        return precision == "float64" and any(self.allows(cast) for cast in formats)

    @functools.cached_property
    def tabled(self) -> set[str]:
        """Modules (PyTorch's paths) that use float32 tables, which may differ in their last digit."""
        found = set(self._our_tables)
        theirs = [path for path, numbers in self.their_tables if inexact(numbers)]
        theirs += [cast.module for cast in self.theirs if cast.made and self._our_tables]
        made = (Cast(path, "float32", made=True) for path in theirs)
        return found | {self._partner(cast.module) for cast in made if self.allows(cast)}

    def leaks(self) -> dict[str, str]:
        """Map modules (PyTorch's paths) to the port's own casts that the reference does not have."""
        found: dict[str, list[str]] = {}
        for cast in self.theirs:
            if not cast.made and not self.allows(cast):
                at = f" at {cast.where}" if cast.where else ""
                found.setdefault(self._partner(cast.module), []).append(f"{cast.format}{at}")
        return {path: ", ".join(dict.fromkeys(texts)) for path, texts in found.items()}

    def narrows(self, module: str) -> bool:
        """Return whether JAX's run still narrows values in a module (PyTorch's path), its parent or its children."""
        near = self._near(module) | {""}
        return any(self._partner(cast.module) in near for cast in self.theirs if not self.allows(cast))

    @property
    def tables(self) -> tuple[Table, ...]:
        return (*self.our_tables, *self.their_tables)

    def notes(self) -> tuple[str, ...]:
        """Return a sentence per format that is used by design."""
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
"""Maximum number of modules listed per source line."""


def _listed(entries: Iterable[tuple[str, str]]) -> str:
    """Group modules by the line that casts: `blocks.0.norm1, blocks.0.norm2 and 22 more (norm.py:12)`."""
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
    """Return whether any value has more than 11 significant bits, unlike masks, counts and powers of two."""
    finite = numbers[np.isfinite(numbers) & (np.abs(numbers) < np.finfo(np.float32).max)]
    digits = np.frexp(finite)[0] * 2.0**11
    return bool((digits != np.rint(digits)).any())
