"""The thin face for our own models: a pair by name, with weights that show every mistake."""

from __future__ import annotations

import math
import zlib
from typing import Any

import jax
import numpy as np
import torch
from flax import nnx

from parity.carry.convert import torch_to_jax
from parity.carry.rules import Rules

SCANNED = Rules(stacked={"blocks": "blocks"})
"""Of our models whose blocks JAX keeps stacked (`scan_blocks`)."""


def power(model: torch.nn.Module, seed: int = 0) -> None:
    """Fills every tensor with random numbers that leave nothing neutral, in place.

    A fresh model has zero biases, unit scales and tiny weights: a swapped norm or a missing bias does not show in it.
    Here every tensor is drawn by its name: scales and single numbers 1 + 0.1 z, biases 0.1 z, running variances
    (0.5, 1.5), tokens and position tables 0.02 z, other weights 0.5 z / sqrt(fan in), z standard normal (of complex
    tensors in both parts). Frozen tensors keep their values.
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
            tensor.copy_(torch.from_numpy(np.asarray(_powered(name, z))))


def _powered(name: str, z: np.ndarray) -> np.ndarray:
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


def make_torch(name: str, *, seed: int | None = 0, checkpoint: str | None = None, **arguments: Any) -> Any:
    """PyTorch's half of `make_pair`."""
    import t2t_torch
    from parity.ours.weight_files import load_into

    with torch.random.fork_rng(devices=[]):  # frozen tensors keep their first values: the seed decides them too
        torch.manual_seed(seed or 0)
        torch_model = t2t_torch.create_model(name, **arguments)
    if checkpoint is not None:
        load_into(torch_model, checkpoint, name, **arguments)
    elif seed is not None:
        power(torch_model, seed)
    return torch_model


def make_pair(
    name: str, *, seed: int | None = 0, checkpoint: str | None = None, scan_blocks: bool = False, **arguments: Any
) -> tuple[Any, Any]:
    """Our model `name` in both frameworks with the same weights: from a file, powered, or (seed None) as initialised.

    With `scan_blocks` JAX's blocks are one stack, and whoever compares the pair needs the rules `SCANNED`.

    Raises:
        ValueError, FileNotFoundError: unknown name, or a checkpoint that cannot be read or does not fit.
    """
    import t2t_jax

    torch_model = make_torch(name, seed=seed, checkpoint=checkpoint, **arguments)
    # Abstract: every tensor comes from PyTorch, none has to be drawn first.
    jax_model = nnx.eval_shape(lambda: t2t_jax.create_model(name, scan_blocks=scan_blocks, **arguments))
    with jax.enable_x64(True):  # so that float64 weights keep their bits
        torch_to_jax(torch_model, jax_model, rules=SCANNED if scan_blocks else None)
    return torch_model, jax_model
