"""Gate for the difference of two losses, from the size of their terms and the propagated errors of the outputs."""

from __future__ import annotations

import math

import numpy as np

from parity.measure.gates import BY_CHANCE, Gates, Row, norm, real_numbers, relative
from parity.runs.torch_side import Gradients


def loss_rows(
    oracle: Gradients, base: Gradients, port: Gradients, gates: Gates, mode: str, perturbed_run: Gradients | None = None
) -> list[Row]:
    """Compare the float32 losses of the reference (`base`) and the port with the float64 oracle's and with each other.

    The error of the loss is the propagated error of the outputs, sum_i g_i d_i, with output errors d_i and g = dL/dy.
    Outputs may have a relative error of `f32_logits` at scale r = rms(y); independent errors of that size sum to
    f32_logits * ||g|| r. With the errors d of the reference's own outputs (known if it is PyTorch), the expected error
    of the loss is sqrt(sum (g_i d_i)^2); the measured error of the loss is a single number that may be small by chance.
    """
    size = loss_scale(oracle)
    base_loss, port_loss, between = (
        relative(abs(a.loss - b.loss), size) for a, b in ((base, oracle), (port, oracle), (port, base))
    )
    spread = max(_spread(run, oracle) for run in (base, perturbed_run or base)) / size if size else 0.0
    handed_on = gates.f32_logits * _reach(oracle) / size if size else 0.0
    limit = max(gates.f32_loss, min(handed_on, gates.f32_logits), BY_CHANCE * spread)
    gate = gates.float32(max(base_loss, spread), 1, limit)
    return [
        Row("loss", "loss", mode, "float32", port_loss, gate, base_loss),
        Row("loss", "loss", "between", "float32", between, limit if gate <= limit else gate + base_loss),
    ]


def loss_scale(run: Gradients) -> float:
    """Return max(|L|, sum_i |y_i dL/dy_i|), the scale for relative errors of the loss.

    If every output y_i has a relative error d_i, then to first order L has the error sum_i y_i dL/dy_i d_i, which is
    at most max |d| times that sum, however small L itself is because its terms cancel.
    """
    terms = sum(float(np.abs(y * g).sum()) for y, g in _reals(run))
    return max(abs(run.loss), terms) if math.isfinite(terms) else abs(run.loss)


def _reals(run: Gradients) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the outputs and the gradients of the loss with respect to them, as real numbers, where both are finite."""
    found = []
    for y, g in run.outputs:
        y, g = real_numbers(y, g)
        kept = np.isfinite(y) & np.isfinite(g)
        found.append((y[kept], g[kept]))
    return found


def _spread(run: Gradients, oracle: Gradients) -> float:
    """Return sqrt(sum (g_i d_i)^2), where d are the errors of this run's outputs."""
    total = 0.0
    for (y, _), (wanted, g) in zip(run.outputs, oracle.outputs, strict=False):
        y, wanted, g = real_numbers(y, wanted, g)
        with np.errstate(over="ignore", invalid="ignore"):
            terms = (y - wanted) * g
        total += norm(terms[np.isfinite(terms)]) ** 2
    return math.sqrt(total)


def _reach(oracle: Gradients) -> float:
    """Return the sum of ||g|| rms(y) over the outputs."""
    return sum(norm(g) * norm(y) / math.sqrt(y.size) for y, g in _reals(oracle) if y.size)


def loss_error(value: Gradients, reference: Gradients) -> float:
    return relative(abs(value.loss - reference.loss), loss_scale(reference))
