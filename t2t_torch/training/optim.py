"""Optimizers as used by the authors: parameter groups, schedule and weight averaging.

Twin: t2t_jax/training/optim.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import nn

from t2t_common.weights.adapt import CLASSIFIERS
from t2t_common.weights.layer_decay import layer_scale
from t2t_config import Recipe, epoch_lr


def freeze(model: nn.Module, names: Collection[str]) -> None:
    """Exclude the modules and parameters called `names` from training.

    Raises:
        ValueError: A name matches no parameter.
    """
    known = dict(model.named_parameters())
    for name in names:
        chosen = [p for key, p in known.items() if key == name or key.startswith(f"{name}.")]
        if not chosen:
            modules = ", ".join(dict.fromkeys(key.partition(".")[0] for key in known))
            raise ValueError(
                f"frozen: the model has no parameter {name!r} nor a module with parameters; it has {modules}"
            )
        for p in chosen:
            p.requires_grad_(False)


def param_groups(
    model: nn.Module,
    weight_decay: float,
    *,
    decay_all: bool = False,
    backbone_lr_scale: float = 1.0,
    layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """Return parameter groups for `torch.optim`, with timm's grouping.

    Attributes of a group beside those of `torch.optim`: `lr_scale`, of the peak learning rate, and with `layer_decay`
    also `layer_scale`, of the whole schedule (timm's `lr_scale`).

    Unless `decay_all` is set, one-dimensional tensors, biases and the names in the model's `no_weight_decay()` get no
    weight decay. Frozen tensors are in no group. Classifiers come first, in separate groups, if the backbone has
    another `lr_scale`.
    """
    listed: set[str] = getattr(model, "no_weight_decay", set)()
    depth = len(getattr(model, "blocks", ()))
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {
        (scale, 1.0, decays): [] for scale in dict.fromkeys((1.0, backbone_lr_scale)) for decays in (False, True)
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            spare = parameter.ndim <= 1 or name.endswith(".bias") or name in listed
            scale = 1.0 if name.partition(".")[0] in CLASSIFIERS else backbone_lr_scale
            of_layer = layer_scale(name, depth, layer_decay)
            groups.setdefault((scale, of_layer, decay_all or not spare), []).append(parameter)
    return [
        {
            "params": params,
            "weight_decay": weight_decay if decays else 0.0,
            "lr_scale": scale,
            **({} if layer_decay == 1.0 else {"layer_scale": of_layer}),
        }
        for (scale, of_layer, decays), params in groups.items()
        if params
    ]


def recipe_optimizer(
    recipe: Recipe, model: nn.Module, *, steps_per_epoch: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """Return the optimizer of `recipe` for the trained parameters of `model`, and its scheduler, stepped every step.

    The caller clips gradients (`recipe.clip_grad`, `torch.nn.utils.clip_grad_norm_`), because PyTorch's optimizers do
    not.
    """
    groups = param_groups(
        model,
        recipe.weight_decay,
        decay_all=recipe.decay_all,
        backbone_lr_scale=recipe.backbone_lr_scale,
        layer_decay=recipe.layer_decay,
    )
    optimizer: torch.optim.Optimizer
    if recipe.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, lr=1.0, momentum=recipe.momentum)
    else:
        optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(recipe.b1, recipe.b2), eps=recipe.eps, fused=True)

    def rate(group: Mapping[str, Any]) -> Callable[[int], float]:
        scale, of_layer = group["lr_scale"], group.get("layer_scale", 1.0)
        return lambda step: of_layer * epoch_lr(recipe, step // steps_per_epoch, scale)

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, [rate(group) for group in groups])


class Ema:
    """Moving average of every `state_dict` entry, including frozen ones: ema = decay * ema + (1 - decay) * value."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Update the average with the model's current values."""
        for name, value in model.state_dict().items():
            self.state[name].mul_(self.decay).add_(value, alpha=1.0 - self.decay)
