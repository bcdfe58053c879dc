"""The error measure and the gates.

relF(a, b) = ||a - b||_F / ||b||_F, in float64. Never an elementwise rtol, a mean or a signed sum: with those, one
wrong element could be hidden by many correct ones, or two errors could cancel.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import numpy as np

from parity.carry.convert import to_numpy


def rel_f(value: Any, reference: Any) -> float:
    """||value - reference||_F / ||reference||_F in float64; a complex number counts as two, real and imaginary part.

    Elements that are equally non-finite on both sides are ignored; an element that is non-finite on one side only
    gives inf, as do arrays without any finite element, where there is nothing to compare. A zero reference gives 0 if
    value is zero too, else inf.

    Raises:
        ValueError: The shapes differ, or the tensors are empty.
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
"""Range of norms whose squares do not underflow or overflow."""


def _careful(a: np.ndarray, b: np.ndarray) -> float:
    """Compute relF of arrays with infinities, NaN, or values whose squares exceed float64; never 0 if unequal."""
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
    """Return the arrays in float64; if one is complex, all get a last axis for real and imaginary part."""
    if not any(np.iscomplexobj(x) for x in arrays):
        return tuple(x.astype(np.float64, copy=False) for x in arrays)
    # Not by multiplication: inf + 0j times anything is NaN.
    return tuple(np.stack([x.real, x.imag], -1).astype(np.float64, copy=False) for x in arrays)


def norm(array: np.ndarray) -> float:
    """Return ||array||_F, without BLAS: on short vectors its threads cost more than they save."""
    flat = np.ravel(real_numbers(array)[0], order="K")
    return math.sqrt(np.einsum("i,i->", flat, flat))


def relative(error: float, scale: float) -> float:
    """Return error / scale, with 0 / 0 = 0."""
    if error == 0:
        return 0.0
    return float(error / scale) if scale > 0 else math.inf


OF_SUMS = 0.6
"""Allowed roundings of a left-to-right sum of k products, divided by sqrt(k)."""

BY_CHANCE = 8.0
"""Ratio by which a float32 error may exceed both estimates of its noise (PyTorch's error, and the change caused by a
perturbed input). If the three errors of a single number are independent normal variables of the same size, the third
exceeds 8 times the larger of the others with a probability of one in a hundred, and only where the number is the small
remainder of large terms does it reach the limit of a tensor.
"""


Reference = Literal["torch", "jax"]
"""Which side is right by definition: the other one, the port, is judged."""


@dataclasses.dataclass(frozen=True)
class Gates:
    """The largest errors that still count as equal (docs: Tolerances).

    In float64 the two frameworks are compared directly. In float32 each is compared with the float64 oracle, and the
    port's error may be at most `f32_ratio` times the reference's, plus a few roundings; see `float32` for tensors of
    few numbers and for long sums. The reference is PyTorch, unless `parity.check(reference="jax")` says otherwise.
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
        """Return the gate for the error of one float32 tensor to the oracle (derivation: docs, Tolerances).

        Args:
            own: The reference's error to the oracle.
            size: Number of elements of the tensor (or of the earlier one whose error it inherits). If there are few,
                the reference's error is sometimes small by chance: the ratio then rises to 2 * 10^(6 / size), which is
                above 3 for fewer than 35 elements, as long as the gate stays below `limit`.
            limit: Gate for the difference between the two float32 runs.
            floor: A few roundings; `f32_floor` by default.
            terms: Number of products summed per element. Adding them left to right costs 0.3 * sqrt(terms) roundings;
                twice that, plus twice the reference's error for the inherited part, passes below `limit`.
        """
        floor = self.f32_floor if floor is None else floor
        by_chance = 2 * 10 ** (6 / size) * own + floor
        left_to_right = 2 * own + OF_SUMS * math.sqrt(terms) * 2.0**-24
        return max(self.f32_ratio * own + floor, min(max(by_chance, left_to_right), limit))


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        name: Dotted path of PyTorch's module or tensor.
        kind: "weights", "layer" (a module's own arithmetic), "calls" (what it passes to a submodule), "output",
            "leak" (float32 numbers in a float64 run), "loss", "gradient" (of a parameter or an input),
            "activation gradient", "derivative" (of a module's own arithmetic); in training mode also "dropout rate",
            "dropout draws" (which elements share a draw), "random draw" (without partner or of unknown distribution),
            "structure" (calls that do not correspond in training mode only) and "buffer".
        mode: "forced" (correct inputs), "free", "train" (training mode, shared draws), "between" (difference of the
            two float32 runs), or "-".
        precision: "float64" or "float32".
        error: relF of JAX to PyTorch (float64), or of the port to the float64 oracle (float32; the port is JAX, or
            PyTorch with reference="jax"). Where the note says that relF is not sensitive to the elements in question,
            their own error (see `parity.judgement.small_elements`).
        gate: The largest error that passes.
        torch_error: relF of the reference's float32 run to the oracle (PyTorch's, or JAX's with reference="jax"); None
            in float64.
        note: Reason of a failure that the error does not show.
        noise: relF caused by a rounding-size change of the input alone (free layers and output); smaller errors are
            not significant.
        growth: Ratio of output error to input error (float32, free layers): what the layer adds or amplifies.
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
