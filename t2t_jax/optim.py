"""AdamW as the authors use it: grouping, schedule, clipping and weight averaging. Twin: t2t_torch/optim.py.

All trees are flat dictionaries of arrays by dotted name (see state.py).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import jax
import jax.numpy as jnp
import optax

from t2t_config import Recipe, epoch_lr


def decay_mask(params: Mapping[str, jax.Array], no_decay: Collection[str] = ()) -> dict[str, bool]:
    """Which parameters weight decay touches: timm's grouping.

    Never tensors of one dimension, biases, and the names in `no_decay` (a model's `no_weight_decay()`).
    """
    return {
        name: p.ndim > 1 and name.rpartition(".")[2] != "bias" and name not in no_decay for name, p in params.items()
    }


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Scales gradients by min(1, max_norm / (norm + 1e-6)), as `torch.nn.utils.clip_grad_norm_`.

    `optax.clip_by_global_norm` lacks the 1e-6.
    """

    def update(updates: optax.Updates, state: optax.EmptyState, params: optax.Params | None = None):
        del params
        scale = jnp.minimum(1.0, max_norm / (optax.tree.norm(updates) + 1e-6))
        return jax.tree.map(lambda g: g * scale.astype(g.dtype), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def schedule(recipe: Recipe, steps_per_epoch: int) -> optax.Schedule:
    """`epoch_lr` by step: the rate is constant within an epoch, as timm's scheduler leaves it."""
    rates = [epoch_lr(recipe, epoch) for epoch in range(recipe.total_epochs)]
    return lambda step: jnp.asarray(rates)[jnp.minimum(step // steps_per_epoch, len(rates) - 1)]


def adamw(
    lr: float | optax.Schedule,
    *,
    weight_decay: float,
    mask: Mapping[str, bool],
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    clip_grad: float | None = None,
) -> optax.GradientTransformation:
    """`torch.optim.AdamW` with gradient clipping before it; only parameters that `mask` marks are decayed."""
    optimizer = optax.adamw(lr, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=dict(mask))
    if clip_grad is None:
        return optimizer
    return optax.chain(clip_by_global_norm(clip_grad), optimizer)


def recipe_optimizer(
    recipe: Recipe,
    params: Mapping[str, jax.Array],
    *,
    steps_per_epoch: int,
    no_decay: Collection[str] = (),
) -> optax.GradientTransformation:
    """The optimiser of `recipe` for these parameters."""
    return adamw(
        schedule(recipe, steps_per_epoch),
        weight_decay=recipe.weight_decay,
        mask=decay_mask(params, no_decay),
        b1=recipe.b1,
        b2=recipe.b2,
        eps=recipe.eps,
        clip_grad=recipe.clip_grad,
    )


def update_ema(ema: Mapping[str, jax.Array], values: Mapping[str, jax.Array], decay: float) -> dict[str, jax.Array]:
    """d * ema + (1 - d) * value over every entry, frozen ones too, as timm's `ModelEma`."""
    return {name: decay * ema[name] + (1.0 - decay) * values[name] for name in ema}
