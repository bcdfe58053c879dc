"""Build the model, augmentation, optimizer and training step of a recipe.

Twin: t2t_torch/training/from_recipe.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from t2t_common.run_page.samples import COUNT
from t2t_config import Recipe
from t2t_jax.create import create_model
from t2t_jax.parallel.block_boundaries import on_one_cpu
from t2t_jax.parallel.mesh import AnyMesh, check_batch, gather, split_batch
from t2t_jax.state import Arrays
from t2t_jax.training.mixup import Mixup
from t2t_jax.training.optim import recipe_optimizer
from t2t_jax.training.random_erasing import RandomErasing
from t2t_jax.training.step import Batch, TrainState, TrainStep, make_augment, make_train_step, step_key
from t2t_jax.training.token_labeling import TokenLabeling

Sample = Callable[[TrainState, Batch], Batch]


def check_recipe(recipe: Recipe, mesh: AnyMesh) -> None:
    """Raise ValueError unless the batch of `recipe` is divisible among the devices of `mesh` (see `check_batch`)."""
    # MixToken pairs images within a micro-batch, mixup and cutmix within the whole batch.
    computed = recipe.batch_size // (recipe.grad_accum_steps if recipe.mix_token else 1)
    group = (recipe.mixup_group or computed) if recipe.mixes or recipe.mix_token else None
    check_batch(
        recipe.batch_size, mesh, parts=recipe.grad_accum_steps, group=group, group_in_parts=recipe.mix_token > 0
    )


def build_step(
    recipe: Recipe,
    graphdef: nnx.GraphDef,
    params: Arrays,
    no_decay: Collection[str],
    *,
    steps_per_epoch: int,
    mesh: AnyMesh,
    inspect_gradients: Callable[[Arrays], None] | None = None,
) -> tuple[optax.GradientTransformation, TrainStep]:
    """Return the optimizer and the training step of `recipe` on the devices of `mesh`.

    Args:
        recipe: Recipe to train, with num_classes set.
        graphdef: Graph definition of the model in training mode.
        params: Parameters of the model, or their shapes.
        no_decay: Names of parameters without weight decay.
        steps_per_epoch: Number of steps per epoch.
        mesh: Devices of the state and of the batches.
        inspect_gradients: See `make_train_step`.
    """
    tx = recipe_optimizer(recipe, params, steps_per_epoch=steps_per_epoch, no_decay=no_decay)
    step = make_train_step(
        graphdef,
        tx,
        label_smoothing=recipe.label_smoothing,
        ema_decay=recipe.ema_decay,
        mixup=Mixup.of_recipe(recipe),
        random_erasing=RandomErasing.of_recipe(recipe),
        token_labeling=TokenLabeling.of_recipe(recipe),
        grad_accum_steps=recipe.grad_accum_steps,
        remat=recipe.remat,
        mesh=mesh if mesh.size > 1 else None,
        fence=on_one_cpu(mesh),
        inspect_gradients=inspect_gradients,
    )
    return tx, step


def build_sample(recipe: Recipe, *, mesh: AnyMesh) -> Sample:
    """Return (state, batch) -> the first images of a batch, augmented as in the next step, with labels or targets.

    Every process must call it and gets the same images.
    """
    augment, devices = (
        make_augment(Mixup.of_recipe(recipe), RandomErasing.of_recipe(recipe)),
        mesh if mesh.size > 1 else None,
    )

    @jax.jit
    def sample(batch: Batch, key: jax.Array, step: jax.Array) -> Batch:
        seen = augment(split_batch(batch, devices), step_key(key, step))
        return gather({name: seen[name][:COUNT] for name in ("image", "label")}, devices)

    return lambda state, batch: sample(batch, state.key, state.step)


def build_model(recipe: Recipe) -> Any:
    """Return the initialized model of `recipe`, in evaluation mode."""
    dtype = jnp.bfloat16 if recipe.dtype == "bfloat16" else None
    rngs = nnx.Rngs(recipe.seed)
    return create_model(**recipe.model_arguments, dtype=dtype, rngs=rngs, scan_blocks=recipe.scan_blocks)
