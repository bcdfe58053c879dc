"""Number of float32 roundings that a layer's own arithmetic may cost, where PyTorch's own error does not show it.

The unit is a left-to-right sum of products: k of them cost 0.3 sqrt(k) roundings (docs, Tolerances).

- Layers with weights sum as many products as their fan-in.
- Normalization subtracts a mean of k numbers. Its rounding error, relative to the result, is larger by the ratio of
  the numbers to their deviations, sqrt(E x^2 / var), and so counts as k E x^2 / var products. FEW roundings are added
  for the elementwise operations.
- GELU is x (1 + f(x)) / 2, and the error of XLA's tanh and erf is up to 5 roundings of 1 (PyTorch's: 1), which is large
  relative to 1 + f where x is negative: relative to the output, 5 |x / 2| / |gelu(x)|.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from parity.measure.gates import OF_SUMS, norm, relative

OF_XLA = 5.0
"""Maximum error of XLA's tanh and erf on CPU, in roundings of 1; measured in this module's tests."""

FEW = 4
"""Number of roundings of elementwise operations, as in `Gates.f32_floor`."""

LARGEST = 2**40


def own_terms(module: torch.nn.Module, x: np.ndarray | None, y: np.ndarray) -> int:
    """Return the number of products whose left-to-right sum costs as much as the module's own arithmetic.

    Args:
        x, y: First input (if any) and first output tensor of the module, in PyTorch's layout.
    """
    found = float(summed(module))
    if x is not None and np.issubdtype(x.dtype, np.floating):
        found = max(found, _of_mean(module, x.astype(np.float64)), _of_gelu(module, x, y))
    return int(min(found, LARGEST)) if math.isfinite(found) else 0


def summed(module: torch.nn.Module) -> int:
    """Return the number of products summed per output by the module's own weights: the largest fan-in, or 0."""
    if isinstance(module, torch.nn.Embedding | torch.nn.EmbeddingBag):
        return 0
    own = module.named_parameters(recurse=False)
    return max((w.numel() // len(w) for name, w in own if name.endswith("weight") and w.ndim > 1), default=0)


def _of_mean(module: torch.nn.Module, x: np.ndarray) -> float:
    """Return k E x^2 / (var + eps), averaged over the means that a normalization takes of `x` (PyTorch's layout)."""
    if isinstance(module, torch.nn.LayerNorm):
        means, left = divmod(x.size, math.prod(module.normalized_shape))
        means = 0 if left else means
    elif isinstance(module, torch.nn.GroupNorm):
        means = len(x) * module.num_groups
    elif isinstance(module, torch.nn.modules.instancenorm._InstanceNorm) and x.ndim > 2:
        means = len(x) * x.shape[1]
    else:
        return 0.0
    if not means or x.size % means:  # the layer does something else with this tensor
        return 0.0
    groups = x.reshape(means, -1)
    with np.errstate(invalid="ignore", over="ignore"):
        ratios = (groups**2).mean(1) / (groups.var(1) + module.eps)
    return float((math.sqrt(groups.shape[1] * ratios.mean()) + FEW / OF_SUMS) ** 2)


def _of_gelu(module: torch.nn.Module, x: np.ndarray, y: np.ndarray) -> float:
    if not isinstance(module, torch.nn.GELU):
        return 0.0
    return float((OF_XLA * relative(norm(x) / 2, norm(y)) / OF_SUMS) ** 2)
