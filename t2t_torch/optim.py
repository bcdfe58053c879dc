"""AdamW's grouping and the moving average of the authors' training. Twin: t2t_jax/optim.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def param_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for `torch.optim.AdamW`: timm's grouping.

    No decay on tensors of one dimension, biases, and the names of the model's `no_weight_decay()`. Frozen
    tensors are in neither group.
    """
    listed: set[str] = getattr(model, "no_weight_decay", set)()
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            spare = parameter.ndim <= 1 or name.endswith(".bias") or name in listed
            (spared if spare else decayed).append(parameter)
    return [{"params": spared, "weight_decay": 0.0}, {"params": decayed, "weight_decay": weight_decay}]


class Ema:
    """Moving average of every `state_dict` entry, frozen too: ema = decay * ema + (1 - decay) * value."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Takes the model's present values into the average."""
        for name, value in model.state_dict().items():
            self.state[name].copy_(self.decay * self.state[name] + (1.0 - self.decay) * value)
