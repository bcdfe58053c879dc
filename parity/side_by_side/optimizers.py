"""Training configuration of a pair of models: optimizer, schedule, loss and moving average in both frameworks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
import torch

Flat = dict[str, jax.Array]
"""Flax arrays by dotted name."""

TorchOptimizer = tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler | None]


class Average(Protocol):
    """A moving average of a PyTorch model's `state_dict`."""

    state: dict[str, torch.Tensor]

    def update(self, model: torch.nn.Module) -> None: ...


@dataclasses.dataclass(frozen=True)
class TrainingLoss:
    """A scalar loss of the model's output and the batch's targets, as one function per framework."""

    torch: Callable[[Any, torch.Tensor], torch.Tensor]
    jax: Callable[[Any, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Training:
    """A training configuration in both frameworks.

    Attributes:
        torch: Function that maps a model to its optimizer and, if the learning rate changes, its scheduler, which
            steps after the optimizer.
        jax: Function that maps the trained parameters to an optax transformation.
        jax_rate: Learning rate of that transformation, for the comparison with PyTorch's scheduler.
        loss: Loss to minimize.
        torch_ema: Function that creates the moving average of a model's initial weights.
        jax_ema: Function that maps (average, values) to the new average.
    """

    torch: Callable[[torch.nn.Module], TorchOptimizer]
    jax: Callable[[Flat], optax.GradientTransformation]
    jax_rate: float | optax.Schedule
    loss: TrainingLoss
    torch_ema: Callable[[torch.nn.Module], Average] | None = None
    jax_ema: Callable[[Flat, Flat], Mapping[str, jax.Array]] | None = None


def classification(smoothing: float = 0.1) -> TrainingLoss:
    """Mean cross entropy of logits (B, K) with smoothed labels (B,); for several outputs, the mean of their losses."""

    def in_torch(output: Any, labels: torch.Tensor) -> torch.Tensor:
        heads = output if isinstance(output, tuple) else (output,)
        losses = [torch.nn.functional.cross_entropy(x, labels, label_smoothing=smoothing) for x in heads]
        return torch.stack(losses).mean()

    def in_jax(output: Any, labels: jax.Array) -> jax.Array:
        heads = output if isinstance(output, tuple) else (output,)
        targets = [optax.smooth_labels(jax.nn.one_hot(labels, x.shape[-1], dtype=x.dtype), smoothing) for x in heads]
        losses = [optax.softmax_cross_entropy(x, y).mean() for x, y in zip(heads, targets, strict=True)]
        return jnp.stack(losses).mean()

    return TrainingLoss(in_torch, in_jax)


def adamw(
    lr: float = 1e-3,
    *,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    decays: Callable[[tuple[int, ...]], bool] = lambda shape: len(shape) > 1,
    factor: Callable[[int], float] | None = None,
    schedule: optax.Schedule | None = None,
    ema_decay: float | None = None,
    loss: TrainingLoss | None = None,
) -> Training:
    """Return a training with `torch.optim.AdamW` and `optax.adamw`, for any pair of models.

    Args:
        decays: Function that returns whether weight decay applies to a tensor of the given shape.
        factor, schedule: Factor of `lr` at a step for PyTorch's `LambdaLR`, and the optax schedule; both or neither.
        ema_decay: Decay of the moving average by `torch.optim.swa_utils` and `optax.incremental_update`.

    Raises:
        ValueError: Only one of `factor` and `schedule` is given.
    """
    if (factor is None) != (schedule is None):
        raise ValueError("a schedule needs both of factor (PyTorch's) and schedule (optax's)")
    rate = lr if schedule is None else schedule

    def in_torch(model: torch.nn.Module) -> TorchOptimizer:
        params = [p for p in model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in params if decays(tuple(p.shape)) == flag], "weight_decay": weight_decay * flag}
            for flag in (False, True)
        ]
        optimizer = torch.optim.AdamW(groups, lr=lr, betas=betas)
        return optimizer, None if factor is None else torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    def in_jax(params: Flat) -> optax.GradientTransformation:
        mask = {name: decays(p.shape) for name, p in params.items()}
        return optax.adamw(rate, *betas, weight_decay=weight_decay, mask=mask)

    if ema_decay is None:
        return Training(in_torch, in_jax, rate, loss or classification())
    return Training(
        in_torch,
        in_jax,
        rate,
        loss or classification(),
        lambda model: SwaAverage(model, ema_decay),
        lambda ema, values: optax.incremental_update(values, ema, 1.0 - ema_decay),
    )


class SwaAverage:
    """Moving average of a `state_dict` by `torch.optim.swa_utils`, from its initial values; integers are unchanged."""

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self._merge = torch.optim.swa_utils.get_ema_multi_avg_fn(decay)

    def update(self, model: torch.nn.Module) -> None:
        """Update the average with the model's current values."""
        values = model.state_dict()
        names = [name for name, value in self.state.items() if value.is_floating_point()]
        self._merge([self.state[name] for name in names], [values[name] for name in names], 1)
