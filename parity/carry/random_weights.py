"""Random weights for which no layer is the identity or has no effect, so that every porting error is visible."""

from __future__ import annotations

import math
import zlib

import numpy as np
import torch


def randomize(model: torch.nn.Module, seed: int = 0) -> None:
    """Fill every tensor of a PyTorch model with random numbers, in place, so that no layer is without effect.

    A freshly initialized model has zero biases, unit scales and tiny weights, which hide a swapped norm or a missing
    bias. Each tensor is drawn with a seed derived from its name: scales and scalars 1 + 0.1 z, biases 0.1 z, running
    variances in (0.5, 1.5), tokens and position tables 0.02 z, other weights 0.5 z / sqrt(fan in), with z standard
    normal (both parts for complex tensors). Frozen tensors keep their values.
    """
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            numbers = tensor.is_floating_point() or tensor.is_complex()
            if not numbers or (isinstance(tensor, torch.nn.Parameter) and not tensor.requires_grad):
                continue
            draw = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)
            z = draw.standard_normal(tuple(tensor.shape))
            if tensor.is_complex():
                z = z + 1j * draw.standard_normal(tuple(tensor.shape))
            tensor.copy_(torch.from_numpy(np.asarray(value_of(name, z))))


def value_of(name: str, z: np.ndarray) -> np.ndarray:
    """Return the values of the tensor called `name`, given standard normal numbers `z` of its shape."""
    leaf = name.rpartition(".")[2]
    if leaf == "running_var":
        return 0.5 + np.abs(np.sin(z))
    if z.ndim == 0:
        return 1 + 0.1 * z
    if z.ndim == 1:
        return 1 + 0.1 * z if leaf == "weight" else 0.1 * z
    if leaf in ("cls_token", "pos_embed", "dist_token"):
        return 0.02 * z
    return 0.5 * z / math.sqrt(max(math.prod(z.shape[1:]), 1))
