"""What a step does at the borders of a model's blocks: activations inside are forgotten and computed again in the
backward pass where memory is short. The models know nothing of it. Twin: t2t_jax/parallel/block_boundaries.py."""

from __future__ import annotations

import copy
import itertools
from typing import Any, cast

from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint


class Bordered(nn.Module):
    """`block`, whose backward pass starts from its input alone, all inside is computed again (arXiv 1604.06174)."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        # With the weights of this moment: a step may compute with others than it trains (see precision.py).
        weights = dict(self.block.named_parameters())
        return cast(Tensor, checkpoint(self._call, x, weights, use_reentrant=False))

    def _call(self, x: Tensor, weights: dict[str, Tensor]) -> Tensor:
        return functional_call(self.block, weights, (x,))


def border_blocks(model: nn.Module, *, remat: bool = False) -> nn.Module:
    """A model with the very parameters of `model`; with `remat` every block and both layers of the T2T module are
    `Bordered`.

    The paths of its tensors are others then. A model without `blocks` has nothing to border.
    """
    shared = {id(tensor): tensor for tensor in itertools.chain(model.parameters(), model.buffers())}
    bordered: Any = copy.deepcopy(model, shared)
    if remat and hasattr(bordered, "blocks"):
        bordered.blocks = nn.ModuleList(Bordered(block) for block in bordered.blocks)
        tokens = getattr(bordered, "tokens_to_token", None)
        for name in ("attention1", "attention2"):
            if hasattr(tokens, name):
                setattr(tokens, name, Bordered(getattr(tokens, name)))
    return bordered
