"""Causes of wrong optimizer steps: both frameworks' optimizers run on the same gradients, without the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
import optax
import torch

from parity.carry.convert import jax_arrays
from parity.causes.training.steps import GATE, AdamW, State, optimizer_cause, series_cause, travelled
from parity.report.findings import Cause

if TYPE_CHECKING:
    from parity.side_by_side.trajectory import JaxTrainer, TorchTrainer

STEPS = 6


def schedule_causes(rates: Sequence[tuple[float, float]]) -> list[Cause]:
    """Return the cause of different learning rates, given (PyTorch's, JAX's) of every step."""
    cause = series_cause([ours for ours, _ in rates], [theirs for _, theirs in rates])
    return [] if cause is None else [Cause("", cause.switch, cause.description, cause.error_before, cause.error_after)]


def optimiser_causes(ours: TorchTrainer, theirs: JaxTrainer) -> list[Cause]:
    """Return the switch that makes PyTorch's AdamW arrive at the parameters of JAX's optimizer, if there is one.

    The gradients are random and of very different sizes, so that an epsilon and clipping have an effect. Both trainers
    must be in float64 and not yet used; their state is changed.
    """
    settings = _settings(ours)
    if settings is None:
        return []
    draw, start = np.random.RandomState(0), ours.weights()
    gradients = [
        {name: draw.standard_normal(x.shape) * size for name, x in start.items()}
        for size in np.geomspace(0.01, 1.0, STEPS)
    ]
    rates = _torch_steps(ours, gradients)
    if travelled(ours.weights(), settings.run(start, gradients, rates), start) > GATE:
        return []  # the PyTorch trainer does more than its parameter groups specify
    _jax_steps(theirs, gradients)
    cause = optimizer_cause(settings, start, gradients, theirs.weights(), rates)
    return [] if cause is None else [Cause("", cause.switch, cause.description, cause.error_before, cause.error_after)]


def _settings(trainer: TorchTrainer) -> AdamW | None:
    """Return PyTorch's settings at a learning rate of 1; None unless it is AdamW with equal settings in all groups."""
    optimizer = trainer.optimizer
    if type(optimizer) is not torch.optim.AdamW:
        return None
    groups = optimizer.param_groups
    figures = {(tuple(group["betas"]), group["eps"], group["amsgrad"], group["maximize"]) for group in groups}
    decays = {group["weight_decay"] for group in groups} - {0}
    if len(figures) > 1 or len(decays) > 1 or groups[0]["amsgrad"] or groups[0]["maximize"]:
        return None
    decaying = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    decayed = frozenset(name for name, p in trainer.trained.items() if id(p) in decaying)
    (b1, b2), eps = groups[0]["betas"], groups[0]["eps"]
    return AdamW(1.0, b1, b2, eps, weight_decay=next(iter(decays), 0.0), decayed=decayed)


def _torch_steps(trainer: TorchTrainer, gradients: Sequence[State]) -> list[float]:
    """Run the steps; return the learning rate of each."""
    rates = []
    for given in gradients:
        for name, p in trainer.trained.items():
            p.grad = torch.from_numpy(given[name]).to(p)
        rates.append(trainer.rate)
        trainer.advance()
    return rates


def _jax_steps(trainer: JaxTrainer, gradients: Sequence[State]) -> None:
    with trainer.side.switches():
        for given in gradients:
            arrays = {name: jnp.asarray(x) for name, x in jax_arrays(trainer.ledger, given).items()}
            updates, trainer.opt_state = trainer.tx.update(arrays, trainer.opt_state, trainer.params)
            trainer.params = optax.apply_updates(trainer.params, updates)
