"""`parity.train`: the proof that two training loops are the same, step by step.

In every step JAX starts from PyTorch's parameters. Its loss and gradients are compared with PyTorch's; its optimizer
then gets PyTorch's gradients, and the change of every parameter is compared. So rounding does not add up over the
steps, and a difference shows in the step and at the tensor where it arises. Besides, JAX trains by itself, and the
distance between the two sets of parameters is compared with the distance travelled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from flax import nnx

from parity.carry.arrays import first_line
from parity.carry.model_types import jax_subject, torch_subject
from parity.carry.program import Adapter, Program, title_of
from parity.carry.rules import Rules
from parity.side_by_side.jax_run import Average, JaxLoop, JaxLoss
from parity.side_by_side.lockstep import Lockstep
from parity.side_by_side.optimizers import TrainingLoss, classification
from parity.side_by_side.prepared import Batches, Pair, Source
from parity.side_by_side.records import Clipping, TorchLoop, TorchLoss
from parity.side_by_side.training_report import TrainReport


def train(
    torch_model: torch.nn.Module,
    jax_model: nnx.Module | Adapter,
    batches: Batches,
    *,
    torch_optimizer: Callable[[torch.nn.Module], torch.optim.Optimizer],
    optax: Any,
    loss: TrainingLoss | tuple[TorchLoss, JaxLoss] | None = None,
    steps: int = 20,
    torch_scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
    torch_clip: Clipping | None = None,
    accumulation: int = 1,
    torch_reduction: str = "mean",
    jax_reduction: str = "mean",
    torch_ema: Callable[[torch.nn.Module], Any] | None = None,
    jax_ema: Average | None = None,
    torch_ema_at: str = "after",
    jax_ema_at: str = "after",
    rules: Rules | None = None,
    training: bool | None = None,
    progress: Callable[[str], None] | None = None,
) -> TrainReport:
    """Train copies of both models in float64 on the same batches, and compare every step.

    Compared are the loss, all gradients, the optimizer's moments, the change of every parameter, the moving average and
    the running statistics. If an optimizer or a moving average differs, the cause is searched: the single change of
    PyTorch's arithmetic with which it takes JAX's steps, all of them, to the gate.

    Dropout is off on both sides. Models of Linen, Equinox and Haiku, and functions, run in evaluation mode, and so does
    PyTorch's model beside them. All parameters with a partner are trained in JAX; those that PyTorch freezes have to be
    frozen in the transformation.

    Args:
        torch_model, jax_model: Pair of models with the same weights, as for `parity.check`.
        batches: Pairs of (inputs, target) in PyTorch's layout, used in turn and again from the first; or a function of
            the number of the batch, from 0. Inputs as for `parity.check`; the target is an array or None.
        torch_optimizer: Function that makes the optimizer of a model.
        optax: An optax transformation, or a function that makes it of the parameters, {"blocks.0.kernel": array, ...}.
        loss: Functions of (output, target) in PyTorch and in JAX. Default: mean cross entropy of logits (B, K).
        steps: Number of steps of the optimizer.
        torch_scheduler: Function that makes the learning rate scheduler of the optimizer; it steps after each step.
        torch_clip: Function that clips the gradients of a list of parameters in place, before each step, e.g.
            `lambda params: torch.nn.utils.clip_grad_norm_(params, 1.0)`. In JAX it is part of the transformation.
        accumulation: Number of batches for each step.
        torch_reduction, jax_reduction: Whether their gradients are accumulated as "mean" or "sum"; in JAX also "optax":
            the transformation gets them one by one (`optax.MultiSteps`, made by a function, with
            `accumulator_dtype="float64"`: by default it accumulates in float32, which is reported as a difference).
        torch_ema: Function that makes a moving average of a model, with `update_parameters(model)` and `module`, as
            `torch.optim.swa_utils.AveragedModel`; or with `update(model)` and `state`, a state dict.
        jax_ema: Function of (average, parameters) that returns the new average. The first is the first parameters.
        torch_ema_at, jax_ema_at: Whether the average is updated "before" or "after" the optimizer's step.
        rules: Rules of this pair in addition to the built-in rules.
        training: Whether both models run in training mode (batch statistics). Default: true, if JAX's is an NNX model.
        progress: Function called with a line of text after each step.

    Raises:
        ValueError: The models or the arguments cannot be used, or no parameter ever moved.
    """
    _check_arguments(steps, accumulation, torch_reduction, jax_reduction, torch_ema_at, jax_ema_at)
    if (torch_ema is None) != (jax_ema is None):
        raise ValueError("a moving average needs both torch_ema and jax_ema, or neither")
    torch_model, jax_model = torch_subject(torch_model), jax_subject(jax_model)
    if isinstance(jax_model, Program):
        jax_model.require_numbers()
        if training:
            raise ValueError("training=True needs a flax.nnx.Module: an adapter runs its model in evaluation mode")
    training = not isinstance(jax_model, Program) if training is None else training
    source = Source.of(batches, accumulation)
    pair = Pair.of(torch_model, jax_model, source, rules or Rules(), training)
    losses = loss or classification(0.0)
    in_torch, in_jax = (losses.torch, losses.jax) if isinstance(losses, TrainingLoss) else losses

    def torch_loop(scale: float = 1.0) -> TorchLoop:
        return TorchLoop(
            pair.torch_side(),
            pair.apply,
            in_torch if scale == 1 else lambda output, target: scale * in_torch(output, target),
            torch_optimizer,
            [entry.torch for entry in pair.ledger],
            scheduler=torch_scheduler,
            clip=torch_clip,
            reduction=torch_reduction,
            ema=torch_ema,
            ema_at=torch_ema_at,
        )

    jax_loop = JaxLoop(
        pair.jax_side, pair.apply, in_jax, optax, pair.ledger, reduction=jax_reduction, ema=jax_ema, ema_at=jax_ema_at
    )
    run = Lockstep(torch_loop, jax_loop, source, steps, progress or (lambda text: None))
    try:
        run.go()
    except TypeError as problem:
        raise ValueError(f"a training step cannot be run: {first_line(problem)}") from problem
    settings = {
        "torch_model": type(torch_model).__name__,
        "jax_model": title_of(jax_model),
        "torch_optimizer": type(run.torch.optimizer).__name__,
        "steps": steps,
        "accumulation": accumulation,
        "training mode": training,
    }
    return run.report(pair, settings)


def _check_arguments(steps: int, accumulation: int, torch: str, jax: str, torch_at: str, jax_at: str) -> None:
    """Raise ValueError for a value that cannot be used."""
    for name, count in (("steps", steps), ("accumulation", accumulation)):
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"{name} has to be a whole number from 1, got {count!r}")
    for name, value, known in (
        ("torch_reduction", torch, ("mean", "sum")),
        ("jax_reduction", jax, ("mean", "sum", "optax")),
        ("torch_ema_at", torch_at, ("before", "after")),
        ("jax_ema_at", jax_at, ("before", "after")),
    ):
        if value not in known:
            raise ValueError(f"{name} {value!r} is not one of {', '.join(known)}")
