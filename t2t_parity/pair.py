"""Create a pair of this project's models by name, with weights under which every mistake shows."""

from __future__ import annotations

from typing import Any

import jax
import torch
from flax import nnx

from parity.carry.convert import torch_to_jax
from parity.carry.random_weights import randomize
from parity.carry.rules import Rules

SCANNED = Rules(stacked={"blocks": "blocks"})
"""Rules for models whose blocks are stacked in JAX (`scan_blocks`)."""


def make_torch(name: str, *, seed: int | None = 0, checkpoint: str | None = None, **arguments: Any) -> Any:
    """Create the PyTorch model of `make_pair`."""
    import t2t_torch
    from t2t_parity.weight_files import load_into

    with torch.random.fork_rng(devices=[]):  # frozen tensors keep their initial values, so these must follow the seed
        torch.manual_seed(seed or 0)
        torch_model = t2t_torch.create_model(name, **arguments)
    if checkpoint is not None:
        load_into(torch_model, checkpoint, name, **arguments)
    elif seed is not None:
        randomize(torch_model, seed)
    return torch_model


def make_pair(
    name: str, *, seed: int | None = 0, checkpoint: str | None = None, scan_blocks: bool = False, **arguments: Any
) -> tuple[Any, Any]:
    """Create model `name` in both frameworks with the same weights.

    The weights are loaded from `checkpoint` if given, else drawn by `randomize`, or with `seed=None` left as
    initialized. With `scan_blocks`, JAX's blocks are stacked, and comparing the pair requires the rules `SCANNED`.

    Raises:
        ValueError, FileNotFoundError: The name is unknown, or the checkpoint cannot be read or does not fit.
    """
    import t2t_jax

    torch_model = make_torch(name, seed=seed, checkpoint=checkpoint, **arguments)
    # Abstract, since every tensor is copied from PyTorch and none has to be initialized.
    jax_model = nnx.eval_shape(lambda: t2t_jax.create_model(name, scan_blocks=scan_blocks, **arguments))
    with jax.enable_x64(True):  # so that float64 weights keep their bits
        torch_to_jax(torch_model, jax_model, rules=SCANNED if scan_blocks else None)
    return torch_model, jax_model
