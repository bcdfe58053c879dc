"""Optimizers as used by the authors: parameter groups, schedule, gradient clipping and weight averaging.

Twin: t2t_torch/training/optim.py. All trees are flat dictionaries of arrays by dotted name (see state.py).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import jax
import jax.numpy as jnp
import optax

from t2t_common.weights.adapt import CLASSIFIERS
from t2t_common.weights.layer_decay import layer_scale
from t2t_config import Recipe, epoch_lr, model_config
from t2t_jax.models.scan_blocks import is_of_block, is_stacked, tensor_of_block, tensor_shape


def freeze(
    params: Mapping[str, jax.Array], buffers: Mapping[str, jax.Array], names: Collection[str]
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Move the modules and parameters called `names` from `params` to `buffers`, which are saved but not trained.

    Returns:
        The new parameters and buffers.

    Raises:
        ValueError: A name matches nothing, or a single block of stacked blocks.
    """
    known = {**params, **buffers}
    for name in names:
        if is_of_block(name) and any(map(is_stacked, known)):
            raise ValueError(
                f"frozen: {name!r} is part of a stack: name a part of all blocks, such as 'blocks' or 'blocks.attn', "
                "or leave scan_blocks out"
            )
        if not any(_is_under(key, name) for key in known):
            modules = ", ".join(dict.fromkeys(key.partition(".")[0] for key in known))
            raise ValueError(
                f"frozen: the model has no parameter {name!r} nor a module with parameters; it has {modules}"
            )
    still = {key: p for key, p in params.items() if any(_is_under(key, name) for name in names)}
    return {key: p for key, p in params.items() if key not in still}, {**buffers, **still}


def _is_under(key: str, name: str) -> bool:
    return key == name or key.startswith(f"{name}.")


def decay_mask(
    params: Mapping[str, jax.Array], no_decay: Collection[str] = (), *, decay_all: bool = False
) -> dict[str, bool]:
    """Return which parameters get weight decay, with timm's grouping.

    One-dimensional tensors, biases and the names in `no_decay` (a model's `no_weight_decay()`) get none. With
    `decay_all`, every parameter gets it, as in PyTorch without parameter groups.
    """
    return {
        name: decay_all
        or (len(tensor_shape(name, p.shape)) > 1 and name.rpartition(".")[2] != "bias" and name not in no_decay)
        for name, p in params.items()
    }


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Scale gradients by min(1, max_norm / (norm + 1e-6)), as `torch.nn.utils.clip_grad_norm_` does.

    `optax.clip_by_global_norm` lacks the 1e-6.
    """

    def update(updates: optax.Updates, state: optax.EmptyState, params: optax.Params | None = None):
        del params
        scale = jnp.minimum(1.0, max_norm / (optax.tree.norm(updates) + 1e-6))
        return jax.tree.map(lambda g: g * scale.astype(g.dtype), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def schedule(recipe: Recipe, steps_per_epoch: int, scale: float = 1.0) -> optax.Schedule:
    """Return `epoch_lr` as a function of the step: the rate is constant within an epoch, as with timm's scheduler."""
    rates = [epoch_lr(recipe, epoch, scale) for epoch in range(recipe.total_epochs)]
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
    """Return `torch.optim.AdamW` preceded by gradient clipping; only parameters selected by `mask` are decayed."""
    return _clipped(optax.adamw(lr, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=dict(mask)), clip_grad)


def sgd(
    lr: float | optax.Schedule,
    *,
    weight_decay: float,
    mask: Mapping[str, bool],
    momentum: float = 0.9,
    clip_grad: float | None = None,
) -> optax.GradientTransformation:
    """Return `torch.optim.SGD` with momentum (not Nesterov), preceded by gradient clipping.

    Weight decay is coupled: for parameters selected by `mask`, it is added to the gradient before momentum.
    """
    decay = optax.add_decayed_weights(weight_decay, dict(mask))
    return _clipped(optax.chain(decay, optax.sgd(lr, momentum=momentum)), clip_grad)


def scale_by_layer(depth: int, layer_decay: float) -> optax.GradientTransformation:
    """Multiply the update of each parameter by the factor of its layer in a model of `depth` blocks."""

    def factor(name: str, update: jax.Array) -> jax.Array | float:
        if not is_stacked(name):
            return layer_scale(name, depth, layer_decay)
        factors_L = [layer_scale(tensor_of_block(name, i), depth, layer_decay) for i in range(depth)]
        return jnp.asarray(factors_L, update.dtype).reshape(-1, *(1 for _ in update.shape[1:]))

    def scale(updates: Mapping[str, jax.Array], params: optax.Params | None = None) -> dict[str, jax.Array]:
        del params
        return {name: update * factor(name, update) for name, update in updates.items()}

    return optax.stateless(scale)


def _clipped(optimizer: optax.GradientTransformation, clip_grad: float | None) -> optax.GradientTransformation:
    return optimizer if clip_grad is None else optax.chain(clip_by_global_norm(clip_grad), optimizer)


def recipe_optimizer(
    recipe: Recipe,
    params: Mapping[str, jax.Array],
    *,
    steps_per_epoch: int,
    no_decay: Collection[str] = (),
) -> optax.GradientTransformation:
    """Return the optimizer of `recipe`, with two groups if head and backbone have different learning rates."""
    mask = decay_mask(params, no_decay, decay_all=recipe.decay_all)

    def group(scale: float) -> optax.GradientTransformation:
        rate = schedule(recipe, steps_per_epoch, scale)
        if recipe.optimizer == "sgd":
            return sgd(rate, weight_decay=recipe.weight_decay, mask=mask, momentum=recipe.momentum)
        return adamw(rate, weight_decay=recipe.weight_decay, mask=mask, b1=recipe.b1, b2=recipe.b2, eps=recipe.eps)

    optimizer = group(1.0)
    if recipe.backbone_lr_scale != 1.0:
        labels = {name: "head" if name.partition(".")[0] in CLASSIFIERS else "backbone" for name in params}
        optimizer = optax.partition({"head": optimizer, "backbone": group(recipe.backbone_lr_scale)}, labels)
    if recipe.layer_decay != 1.0:
        optimizer = optax.chain(
            optimizer, scale_by_layer(model_config(recipe.model).sizes["depth"], recipe.layer_decay)
        )
    return _clipped(optimizer, recipe.clip_grad)


def update_ema(ema: Mapping[str, jax.Array], values: Mapping[str, jax.Array], decay: float) -> dict[str, jax.Array]:
    """Return decay * ema + (1 - decay) * value for every entry, including frozen ones, as timm's `ModelEma` does."""
    return {name: decay * ema[name] + (1.0 - decay) * values[name] for name in ema}
