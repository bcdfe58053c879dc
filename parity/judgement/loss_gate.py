"""How far two losses may lie apart: by the size of their terms, and by what the outputs' own errors make of them."""

from __future__ import annotations

import math

import numpy as np

from parity.measure.gates import BY_CHANCE, Gates, Row, norm, real_numbers, relative
from parity.runs.torch_side import Gradients


def loss_rows(
    oracle: Gradients, ours: Gradients, theirs: Gradients, gates: Gates, mode: str, shaken: Gradients | None = None
) -> list[Row]:
    """float32: the loss of both frameworks against the oracle's and against each other.

    The loss' error is what the outputs' errors d_i make of it, sum_i g_i d_i with g = dL/dy. Outputs may err by
    `f32_logits`, as numbers of one size r = rms(y), which as independent errors come to f32_logits * ||g|| r. And
    PyTorch's own outputs err by d: then sqrt(sum (g_i d_i)^2) is what is to be expected of the loss, where its own
    error is a single number, small by chance now and then.
    """
    size = loss_scale(oracle)
    torch_loss, jax_loss, between = (
        relative(abs(a.loss - b.loss), size) for a, b in ((ours, oracle), (theirs, oracle), (theirs, ours))
    )
    spread = max(_spread(run, oracle) for run in (ours, shaken or ours)) / size if size else 0.0
    handed_on = gates.f32_logits * _reach(oracle) / size if size else 0.0
    limit = max(gates.f32_loss, min(handed_on, gates.f32_logits), BY_CHANCE * spread)
    gate = gates.float32(max(torch_loss, spread), 1, limit)
    return [
        Row("loss", "loss", mode, "float32", jax_loss, gate, torch_loss),
        Row("loss", "loss", "between", "float32", between, limit if gate <= limit else gate + torch_loss),
    ]


def loss_scale(run: Gradients) -> float:
    """max(|L|, sum_i |y_i dL/dy_i|): what a relative error of the loss is relative to.

    If every output y_i is off by a relative d_i, then to first order L is off by sum_i y_i dL/dy_i d_i, at most
    max |d| times that sum, however small the terms of L leave L itself by cancelling.
    """
    terms = sum(float(np.abs(y * g).sum()) for y, g in _reals(run))
    return max(abs(run.loss), terms) if math.isfinite(terms) else abs(run.loss)


def _reals(run: Gradients) -> list[tuple[np.ndarray, np.ndarray]]:
    """The outputs and the loss' gradients by them, as real numbers, where both are finite."""
    found = []
    for y, g in run.outputs:
        y, g = real_numbers(y, g)
        kept = np.isfinite(y) & np.isfinite(g)
        found.append((y[kept], g[kept]))
    return found


def _spread(run: Gradients, oracle: Gradients) -> float:
    """sqrt(sum (g_i d_i)^2), d the errors of this run's outputs."""
    total = 0.0
    for (y, _), (wanted, g) in zip(run.outputs, oracle.outputs, strict=False):
        y, wanted, g = real_numbers(y, wanted, g)
        with np.errstate(over="ignore", invalid="ignore"):
            terms = (y - wanted) * g
        total += norm(terms[np.isfinite(terms)]) ** 2
    return math.sqrt(total)


def _reach(oracle: Gradients) -> float:
    """The sum over the outputs of ||g|| rms(y)."""
    return sum(norm(g) * norm(y) / math.sqrt(y.size) for y, g in _reals(oracle) if y.size)


def loss_error(value: Gradients, reference: Gradients) -> float:
    return relative(abs(value.loss - reference.loss), loss_scale(reference))
