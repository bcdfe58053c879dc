"""Build the model, augmentation, optimizer and training step of a recipe.

Twin: t2t_jax/training/from_recipe.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from t2t_common.run_page.samples import COUNT
from t2t_config import Recipe
from t2t_torch.create import create_model
from t2t_torch.training.checkpointed_blocks import checkpoint_blocks
from t2t_torch.training.compute_dtype import WithComputeDtype
from t2t_torch.training.mixup import Mixup
from t2t_torch.training.optim import Ema, recipe_optimizer
from t2t_torch.training.processes import process_count
from t2t_torch.training.random_erasing import RandomErasing
from t2t_torch.training.step import Batch, TrainState, TrainStep, make_augment, make_train_step
from t2t_torch.training.token_labeling import TokenLabeling

Sample = Callable[[TrainState, Batch], Batch]


def check_recipe(recipe: Recipe, processes: int) -> None:
    """Check that every process gets an equal part of the batch, with whole micro-batches and whole mixup groups.

    Raises:
        ValueError: It does not; the message suggests values that work.
    """
    if recipe.batch_size % (processes * recipe.grad_accum_steps):
        parts = f" in {recipe.grad_accum_steps} micro-batches" if recipe.grad_accum_steps > 1 else ""
        raise ValueError(
            f"batch_size {recipe.batch_size} does not divide among {processes} processes{parts}: choose a multiple of "
            f"{processes * recipe.grad_accum_steps}, or other processes"
        )
    # MixToken pairs images within a micro-batch, mixup and cutmix within the whole batch.
    computed = recipe.batch_size // (recipe.grad_accum_steps if recipe.mix_token else 1)
    own, group = computed // processes, recipe.mixup_group or computed
    if (recipe.mixes or recipe.mix_token) and processes > 1 and own % group:
        smaller = math.gcd(own, group)
        remedy = f"--mixup-group {smaller}, or another " if smaller % 2 == 0 else "another "
        raise ValueError(
            f"mixup_group {group} does not divide the {own} images of each process, so that images would be exchanged "
            f"between processes: choose {remedy}batch size or number of processes"
        )


def build_step(recipe: Recipe, model: nn.Module, *, steps_per_epoch: int) -> tuple[TrainState, TrainStep]:
    """Return the initial state and the training step of `recipe`.

    Args:
        recipe: Recipe to train, with num_classes set.
        model: Model on its device, with frozen parameters excluded; it becomes part of the state, in evaluation mode.
        steps_per_epoch: Number of steps per epoch.
    """
    optimizer, scheduler = recipe_optimizer(recipe, model, steps_per_epoch=steps_per_epoch)
    average = None if recipe.ema_decay is None else Ema(model, recipe.ema_decay)
    trained = checkpoint_blocks(model, remat=recipe.remat).train()
    forward_model: nn.Module = WithComputeDtype(trained, compute_dtype(recipe.dtype))
    if process_count() > 1:
        forward_model = DistributedDataParallel(forward_model)
    step = make_train_step(
        forward_model,
        seed=recipe.seed,
        label_smoothing=recipe.label_smoothing,
        clip_grad=recipe.clip_grad,
        mixup=Mixup.of_recipe(recipe),
        random_erasing=RandomErasing.of_recipe(recipe),
        token_labeling=TokenLabeling.of_recipe(recipe),
        grad_accum_steps=recipe.grad_accum_steps,
    )
    return TrainState(model.eval(), optimizer, scheduler, average), step


def build_sample(recipe: Recipe) -> Sample:
    """Return (state, batch) -> the first images (B, H, W, C) of this process's part of a batch, augmented as in the
    next step, with labels or targets; on the CPU."""
    augment = make_augment(recipe.seed, Mixup.of_recipe(recipe), RandomErasing.of_recipe(recipe))

    def sample(state: TrainState, batch: Batch) -> Batch:
        seen = augment(batch, state.step)
        return {"image": seen["image"][:COUNT].permute(0, 2, 3, 1).cpu(), "label": seen["label"][:COUNT].cpu()}

    return sample


def compute_dtype(name: str) -> torch.dtype | None:
    """Return the dtype for a recipe's or option's `name`; None means the dtype of the parameters."""
    return torch.bfloat16 if name == "bfloat16" else None


def build_model(recipe: Recipe) -> Any:
    """Return the model of `recipe`, initialized with its seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return create_model(**recipe.model_arguments)
