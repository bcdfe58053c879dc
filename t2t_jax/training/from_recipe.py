"""What a recipe becomes: its model, its mixing of images, its optimiser and training step."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from t2t_common.run_page.samples import COUNT
from t2t_config import Recipe
from t2t_config.shapes import soft_split_grids, to_pair
from t2t_jax.create import create_model
from t2t_jax.parallel.block_boundaries import on_one_cpu
from t2t_jax.parallel.mesh import AnyMesh, check_batch, gather, split_batch
from t2t_jax.state import Arrays
from t2t_jax.training.mixup import Mixup
from t2t_jax.training.optim import recipe_optimizer
from t2t_jax.training.random_erasing import RandomErasing
from t2t_jax.training.step import Batch, TrainState, make_augment, make_train_step, step_key
from t2t_jax.training.token_labeling import TokenLabeling

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]
Sample = Callable[[TrainState, Batch], Batch]


def check_recipe(recipe: Recipe, mesh: AnyMesh) -> None:
    """Raises ValueError unless the batch of `recipe` divides among the devices of `mesh` (see `check_batch`)."""
    # MixToken finds partners within a part of the batch, mixup and cutmix within all of it.
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
) -> tuple[optax.GradientTransformation, TrainStep]:
    """Optimiser and training step of `recipe`, whose num_classes is set, on the devices of `mesh`.

    Args:
        recipe: what to train.
        graphdef: of the model in training mode.
        params: its parameters; shapes are enough.
        no_decay: names that weight decay leaves alone.
        steps_per_epoch: of the data.
        mesh: devices of the state and of the batches.
    """
    tx = recipe_optimizer(recipe, params, steps_per_epoch=steps_per_epoch, no_decay=no_decay)
    step = make_train_step(
        graphdef,
        tx,
        label_smoothing=recipe.label_smoothing,
        ema_decay=recipe.ema_decay,
        mixup=build_mixup(recipe),
        random_erasing=build_random_erasing(recipe),
        token_labeling=build_token_labeling(recipe),
        grad_accum_steps=recipe.grad_accum_steps,
        remat=recipe.remat,
        mesh=mesh if mesh.size > 1 else None,
        fence=on_one_cpu(mesh),
    )
    return tx, step


def build_sample(recipe: Recipe, *, mesh: AnyMesh) -> Sample:
    """(state, batch) -> the first images of a batch as the next step will see them, and their labels or targets.

    Every process has to call it, and gets the same images.
    """
    augment, devices = make_augment(build_mixup(recipe), build_random_erasing(recipe)), mesh if mesh.size > 1 else None

    @jax.jit
    def sample(batch: Batch, key: jax.Array, step: jax.Array) -> Batch:
        seen = augment(split_batch(batch, devices), step_key(key, step))
        return gather({name: seen[name][:COUNT] for name in ("image", "label")}, devices)

    return lambda state, batch: sample(batch, state.key, state.step)


def build_model(recipe: Recipe) -> Any:
    """The freshly initialised model of `recipe`, in evaluation mode."""
    return create_model(
        recipe.model,
        img_size=recipe.img_size,
        in_chans=recipe.in_chans,
        num_classes=recipe.num_classes,
        drop_rate=recipe.drop_rate,
        attn_drop_rate=recipe.attn_drop_rate,
        drop_path_rate=recipe.drop_path_rate,
        dtype=jnp.bfloat16 if recipe.dtype == "bfloat16" else None,
        rngs=nnx.Rngs(recipe.seed),
        scan_blocks=recipe.scan_blocks,
        **recipe.overrides,
    )


def build_token_labeling(recipe: Recipe) -> TokenLabeling | None:
    """Token labeling of `recipe`, whose num_classes is set; None without."""
    if not recipe.aux_head or recipe.num_classes is None:
        return None
    return TokenLabeling(
        num_classes=recipe.num_classes,
        grid=soft_split_grids(to_pair(recipe.img_size))[-1],
        dense_weight=recipe.dense_weight,
        mix_token=recipe.mix_token,
        label_smoothing=recipe.label_smoothing,
        group=recipe.mixup_group,
    )


def build_random_erasing(recipe: Recipe) -> RandomErasing | None:
    """Random erasing of `recipe`; None without."""
    return RandomErasing(recipe.re_prob) if recipe.re_prob else None


def build_mixup(recipe: Recipe) -> Mixup | None:
    """Mixup and cutmix of `recipe`, whose num_classes is set; None without."""
    if not recipe.mixes or recipe.num_classes is None:
        return None
    return Mixup(
        mixup_alpha=recipe.mixup,
        cutmix_alpha=recipe.cutmix,
        prob=recipe.mixup_prob,
        switch_prob=recipe.mixup_switch_prob,
        mode=recipe.mixup_mode,
        label_smoothing=recipe.label_smoothing,
        num_classes=recipe.num_classes,
        group=recipe.mixup_group,
    )
