"""Gradient checkpointing: recompute the activations inside a model's blocks in the backward pass to save memory.

The models' own code is unaffected. Twin: t2t_jax/parallel/block_boundaries.py.
"""

from __future__ import annotations

import copy
import itertools
from typing import Any, cast

from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint


class CheckpointedBlock(nn.Module):
    """`block` with gradient checkpointing (arXiv 1604.06174): only its input is stored for the backward pass."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        # The current weights: a step may compute with other tensors than the trained ones (see compute_dtype.py).
        weights = dict(self.block.named_parameters())
        return cast(Tensor, checkpoint(self._call, x, weights, use_reentrant=False))

    def _call(self, x: Tensor, weights: dict[str, Tensor]) -> Tensor:
        return functional_call(self.block, weights, (x,))


def checkpoint_blocks(model: nn.Module, *, remat: bool = False) -> nn.Module:
    """Return a copy of `model` that shares its parameters; with `remat`, every block and both layers of the T2T module
    are wrapped in `CheckpointedBlock`.

    Wrapping changes the names of the tensors. A model without `blocks` is not wrapped.
    """
    shared = {id(tensor): tensor for tensor in itertools.chain(model.parameters(), model.buffers())}
    copied: Any = copy.deepcopy(model, shared)
    if remat and hasattr(copied, "blocks"):
        copied.blocks = nn.ModuleList(CheckpointedBlock(block) for block in copied.blocks)
        tokens = getattr(copied, "tokens_to_token", None)
        for name in ("attention1", "attention2"):
            if hasattr(tokens, name):
                setattr(tokens, name, CheckpointedBlock(getattr(tokens, name)))
    return copied
