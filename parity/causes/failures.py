"""Errors of a module, and their distance to a replay."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from parity.causes.replay import Sites
from parity.measure.gates import norm, rel_f, relative
from parity.pairing.match_calls import Pair, aligned
from parity.recording.capture import Key

ORDINARY = 1e3
"""Elements above this multiple of the median are measured apart, as they would hide the errors of all others."""

FEW = 8
"""Minimum number of finite elements (all, if a tensor has fewer elements)."""


@dataclasses.dataclass(frozen=True)
class Wrong:
    """A wrong result of a module: what it passes to the inner call `site`, or returns (`site` is None)."""

    site: Key | None
    pair: Pair
    value: list[np.ndarray]

    def wanted(self, sites: Sites) -> list[np.ndarray] | None:
        """Return the value of a replay at this site, in JAX's layout; None if it cannot be compared."""
        tensors = sites.get(self.site)
        if tensors is None:
            return None
        arrays = [x.detach().cpu().numpy() for x in tensors]
        if self.site is None:
            chosen = range(len(arrays)) if self.pair.outputs is None else self.pair.outputs
            found, axes = [arrays[i] for i in chosen if i < len(arrays)], self.pair.output_axes
        else:
            chosen = self.pair.inputs or ()
            if max(chosen, default=0) >= len(arrays):
                return None
            found, axes = [arrays[i] for i in chosen], self.pair.input_axes
        if len(found) != len(axes) or any(a is not None and len(a) != x.ndim for x, a in zip(found, axes, strict=True)):
            return None
        found = aligned(found, axes)
        return found if [x.shape for x in found] == [x.shape for x in self.value] else None

    def error(self, sites: Sites) -> float:
        """Return the largest distance of JAX's tensors to those of a replay; inf if they cannot be compared."""
        wanted = self.wanted(sites)
        if wanted is None:
            return math.inf
        return max((distance(a, b) for a, b in zip(self.value, wanted, strict=True)), default=0.0)


def distance(value: np.ndarray, reference: np.ndarray) -> float:
    """Return relF, or the relF of all elements up to `ORDINARY` times the median, whichever is larger."""
    if value.size == 0:
        return 0.0
    if np.isfinite(reference).sum() < min(value.size, FEW):
        return math.inf  # too few finite elements to compare
    if np.iscomplexobj(value) or np.iscomplexobj(reference):
        value, reference = (np.stack((np.real(x), np.imag(x))) for x in (value, reference))
    error = rel_f(value, reference)
    if not 0 < error < math.inf or not np.issubdtype(reference.dtype, np.floating):
        return error
    finite = np.isfinite(reference)
    sizes = np.abs(np.where(finite, reference, 0))
    present = sizes[sizes > 0]
    limit = ORDINARY * float(np.median(present)) if present.size else 0.0
    ordinary = finite & (sizes <= limit)
    if ordinary.sum() == finite.sum() or not ordinary.any():
        return error
    return max(error, relative(norm(value[ordinary] - reference[ordinary]), norm(reference[ordinary])))
