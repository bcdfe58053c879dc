"""How many float32 roundings a layer's own arithmetic may cost, where PyTorch's own error does not show it.

The unit is a sum of products from left to right: k of them cost 0.3 sqrt(k) roundings (docs, How equality is judged).

- Layers with weights sum as many products as their fan-in.
- Normalisation subtracts a mean of k numbers. Its rounding is as large beside what is left as the numbers are beside
  their deviations, sqrt(E x^2 / var): so much as k E x^2 / var products. FEW roundings of what is done to each number
  come on top.
- GELU is x (1 + f(x)) / 2, and XLA's tanh and erf err by up to 5 roundings of 1 (PyTorch's by 1), which is much beside
  1 + f where x is negative: relative to the output, 5 |x / 2| / |gelu(x)|.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from parity.measure.gates import OF_SUMS, norm, relative

OF_XLA = 5.0
"""Roundings of 1 by which XLA's tanh and erf err on a CPU at most; measured in this module's tests."""

FEW = 4
"""Roundings: `Gates.f32_floor`."""

LARGEST = 2**40


def own_terms(module: torch.nn.Module, x: np.ndarray | None, y: np.ndarray) -> int:
    """So many products, summed from left to right, cost as much as the module's own arithmetic.

    Args:
        x, y: the first tensor that it takes, if any, and the first that it returns, in PyTorch's layout.
    """
    found = float(summed(module))
    if x is not None and np.issubdtype(x.dtype, np.floating):
        found = max(found, _of_mean(module, x.astype(np.float64)), _of_gelu(module, x, y))
    return int(min(found, LARGEST)) if math.isfinite(found) else 0


def summed(module: torch.nn.Module) -> int:
    """How many products the module's own weights sum to one number: the largest fan-in; 0 without such weights."""
    if isinstance(module, torch.nn.Embedding | torch.nn.EmbeddingBag):
        return 0
    own = module.named_parameters(recurse=False)
    return max((w.numel() // len(w) for name, w in own if name.endswith("weight") and w.ndim > 1), default=0)


def _of_mean(module: torch.nn.Module, x: np.ndarray) -> float:
    """k E x^2 / (var + eps), on average over the means that a normalisation takes of `x` (PyTorch's layout)."""
    if isinstance(module, torch.nn.LayerNorm):
        means, left = divmod(x.size, math.prod(module.normalized_shape))
        means = 0 if left else means
    elif isinstance(module, torch.nn.GroupNorm):
        means = len(x) * module.num_groups
    elif isinstance(module, torch.nn.modules.instancenorm._InstanceNorm) and x.ndim > 2:
        means = len(x) * x.shape[1]
    else:
        return 0.0
    if not means or x.size % means:  # it does something else with this tensor
        return 0.0
    groups = x.reshape(means, -1)
    with np.errstate(invalid="ignore", over="ignore"):
        ratios = (groups**2).mean(1) / (groups.var(1) + module.eps)
    return float((math.sqrt(groups.shape[1] * ratios.mean()) + FEW / OF_SUMS) ** 2)


def _of_gelu(module: torch.nn.Module, x: np.ndarray, y: np.ndarray) -> float:
    if not isinstance(module, torch.nn.GELU):
        return 0.0
    return float((OF_XLA * relative(norm(x) / 2, norm(y)) / OF_SUMS) ** 2)
