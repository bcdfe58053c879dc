"""The measure and the gates.

relF(a, b) = ||a - b||_F / ||b||_F, in float64. Never an elementwise rtol, never a mean, never a signed sum: those let
one wrong element hide among many right ones, or two wrong ones cancel.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from parity.carry.convert import to_numpy


def rel_f(value: Any, reference: Any) -> float:
    """||value - reference||_F / ||reference||_F in float64; a complex number is two: real and imaginary part.

    Where both sides are not finite in the same places and in the same way, those places are left out; not finite on
    one side only gives inf, and so does a pair without any finite number: there is nothing to compare. A reference of
    zeros gives 0 if value is zero too, else inf.

    Raises:
        ValueError: shapes differ, or there is nothing to compare.
    """
    a, b = to_numpy(value), to_numpy(reference)
    if a.shape != b.shape:
        raise ValueError(f"shapes differ: {a.shape} and {b.shape}")
    if a.size == 0:
        raise ValueError("nothing to compare: the tensors are empty")
    a, b = real_numbers(a, b)
    with np.errstate(over="ignore", invalid="ignore"):
        error, scale = norm(a - b), norm(b)
    if TINY < error < HUGE and TINY < scale < HUGE:
        return error / scale
    return 0.0 if np.array_equal(a, b) and np.isfinite(b).any() else _careful(a, b)


TINY, HUGE = 1e-140, 1e140
"""Norms beyond these may have lost squares to underflow or overflow."""


def _careful(a: np.ndarray, b: np.ndarray) -> float:
    """relF of arrays that hold infinities, NaN, or numbers whose squares float64 cannot hold; never 0 if unequal."""
    finite = np.isfinite(b)
    alike = np.array_equal(a[~finite], b[~finite], equal_nan=True) and np.isfinite(a[finite]).all()
    if not alike or not finite.any():
        return math.inf
    a, b = a[finite], b[finite]
    if np.array_equal(a, b):
        return 0.0
    top = max(np.abs(a).max(), np.abs(b).max())
    return max(relative(norm(a / top - b / top), norm(b / top)), np.finfo(np.float64).tiny)


def real_numbers(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """The arrays in float64; if one of them is complex, all with a last axis more: real and imaginary part."""
    if not any(np.iscomplexobj(x) for x in arrays):
        return tuple(x.astype(np.float64, copy=False) for x in arrays)
    # Not by way of a product: inf + 0j times anything is NaN.
    return tuple(np.stack([x.real, x.imag], -1).astype(np.float64, copy=False) for x in arrays)


def norm(array: np.ndarray) -> float:
    """||array||_F. Without BLAS: on short vectors its threads cost more than they give."""
    flat = np.ravel(real_numbers(array)[0], order="K")
    return math.sqrt(np.einsum("i,i->", flat, flat))


def relative(error: float, scale: float) -> float:
    """error / scale, 0 for 0 / 0."""
    if error == 0:
        return 0.0
    return float(error / scale) if scale > 0 else math.inf


OF_SUMS = 0.6
"""A sum of k products, from left to right, may cost this times sqrt(k) roundings."""

BY_CHANCE = 8.0
"""So far above both figures of its noise (PyTorch's error, and what a shaken input changes) a float32 error may lie.

Let a single number err by three independent normal errors of one size: the third exceeds 8 times the larger of the
others once in a hundred times, and only where it is the small rest of large terms does it meet the limit of a tensor.
"""


@dataclasses.dataclass(frozen=True)
class Gates:
    """The largest errors that still count as equal (docs: How equality is judged).

    In float64 the two frameworks are compared directly. In float32 each is measured against the float64 oracle, and
    JAX may stray at most `f32_ratio` times as far as PyTorch itself does, plus a few roundings; see `float32` for
    tensors of few numbers and for long sums.
    """

    f64: float = 1e-13
    f64_gradient: float = 1e-12
    f32_ratio: float = 3.0
    f32_floor: float = 2.0**-22
    f32_gradient_floor: float = 2.0**-21
    f32_between: float = 1e-5
    f32_logits: float = 3e-6
    f32_loss: float = 1e-6

    def float32(self, own: float, size: int, limit: float, *, floor: float | None = None, terms: int = 0) -> float:
        """The gate of one float32 tensor's error to the oracle (derivation: docs, How equality is judged).

        Args:
            own: PyTorch's error there.
            size: how many numbers the tensor has (or the one before it that hands its error on). Of few, PyTorch's
                error is small by chance now and then: then the ratio rises to 2 * 10^(6 / size), which is above 3 for
                fewer than 35 numbers, as long as the gate stays below `limit`.
            limit: the gate of the two float32 runs against each other.
            floor: a few roundings; `f32_floor` by default.
            terms: how many products each number sums. Adding them left to right costs 0.3 * sqrt(terms) roundings;
                twice that, and twice PyTorch's error for what was handed on, passes below `limit`.
        """
        floor = self.f32_floor if floor is None else floor
        by_chance = 2 * 10 ** (6 / size) * own + floor
        left_to_right = 2 * own + OF_SUMS * math.sqrt(terms) * 2.0**-24
        return max(self.f32_ratio * own + floor, min(max(by_chance, left_to_right), limit))


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        name: dotted path of the module or tensor, PyTorch's.
        kind: "weights", "layer" (a module's own arithmetic), "calls" (what it passes to a module inside it),
            "output", "leak" (float32 numbers in a float64 run), "loss", "gradient" (of a parameter or an input),
            "activation gradient", "derivative" (of a module's own arithmetic); in training mode "dropout rate",
            "dropout draws" (which elements share one), "random draw" (one that stands alone, or has no known law),
            "structure" (calls that only there do not answer to each other) and "buffer" too.
        mode: "forced" (correct inputs), "free", "train" (training mode, shared draws), "between" (the two float32
            runs against each other), or "-".
        precision: "float64" or "float32".
        error: relF of JAX: to PyTorch (float64), to the float64 oracle (float32). Where the note says that relF does
            not see the elements in question, their own error (see `parity.judgement.small_elements`).
        gate: the largest error that passes.
        torch_error: relF of PyTorch's float32 to the oracle; None in float64.
        note: why it fails where the figure does not say it.
        noise: relF that a rounding-size change of the input alone causes here (free layers and output); below it a
            figure says nothing.
        growth: error of the output over error of the inputs (float32, free layers): what the layer adds or amplifies.
    """

    name: str
    kind: str
    mode: str
    precision: str
    error: float
    gate: float
    torch_error: float | None = None
    note: str = ""
    noise: float | None = None
    growth: float | None = None

    @property
    def passed(self) -> bool:
        return self.error <= self.gate and not self.note
