"""Training step and evaluation forward pass: pure functions of plain pytrees, compiled once.

Twin: t2t_torch/training/step.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from t2t_common.evaluation.cpu_chunks import available_cores, num_chunks
from t2t_jax.models.scan_blocks import unstack_arrays, unstack_blocks
from t2t_jax.ops.platform import traced_on
from t2t_jax.parallel.block_boundaries import on_one_cpu, wrap_blocks
from t2t_jax.parallel.mesh import AnyMesh, gather, scatter, split_batch
from t2t_jax.state import Arrays, merge_model
from t2t_jax.training.loss import cross_entropy
from t2t_jax.training.mixup import Mixup
from t2t_jax.training.optim import update_ema
from t2t_jax.training.random_erasing import RandomErasing
from t2t_jax.training.token_labeling import TokenLabeling

Batch = Mapping[str, Any]
"""{"image": (B, H, W, C) float, "label": (B,) int or (B, num_classes) float}; for token labeling also "label_scores"
and "label_classes" (B, K, h, w) and "crop" (B, 4)."""

AUGMENTATION = 2**32 - 1
"""Folded into a step's key for augmentation. Dropout folds in 0, 1, 2, ..., which do not reach this value."""
ACCUMULATION = AUGMENTATION - 1
"""ACCUMULATION - i is folded in for micro-batch i."""
MIX_TOKEN = 2**31
"""Folded in for MixToken; far from the values above and from those of dropout."""


class TrainState(NamedTuple):
    """State of a training run between steps, except for the position in the data."""

    params: Arrays
    buffers: Arrays
    opt_state: Any
    ema: Arrays | None
    step: jax.Array
    key: jax.Array  # raw key data, uint32: the same for every checkpoint format

    @property
    def raw(self) -> Arrays:
        """All arrays of the model as trained."""
        return {**self.params, **self.buffers}

    @property
    def best(self) -> Arrays:
        """All arrays to evaluate: the moving average if there is one, else the trained arrays."""
        return self.raw if self.ema is None else self.ema


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]


def init_state(
    params: Arrays, buffers: Arrays, tx: optax.GradientTransformation, *, seed: int, average: bool
) -> TrainState:
    """Return the initial state; with `average`, the moving average starts from the initial weights."""
    return TrainState(
        params=params,
        buffers=buffers,
        opt_state=tx.init(params),
        ema=jax.tree.map(jnp.copy, {**params, **buffers}) if average else None,
        step=jnp.zeros((), jnp.int32),
        key=jax.random.key_data(jax.random.key(seed)),
    )


Augment = Callable[[Batch, jax.Array], Batch]


def make_augment(mixup: Mixup | None, random_erasing: RandomErasing | None) -> Augment:
    """Return the augmentation of a step: (batch, key of the step) -> batch. Arguments that are None are skipped."""

    def augment(batch: Batch, key: jax.Array) -> Batch:
        mixup_key, erasing_key = jax.random.split(jax.random.fold_in(key, AUGMENTATION))
        images, labels = batch["image"], batch["label"]
        if mixup is not None:
            images, labels = mixup(images, labels, mixup_key)
        if random_erasing is not None:
            images = random_erasing(images, erasing_key)
        return {**batch, "image": images, "label": labels}

    return augment


def step_key(key: jax.Array, step: jax.Array) -> jax.Array:
    """Return the key of the step after `step`, from the raw key of the state."""
    return jax.random.fold_in(jax.random.wrap_key_data(key), step)


LossFn = Callable[[Arrays, Arrays, Batch, jax.Array], jax.Array]
"""(params, buffers, batch, key) -> mean loss over the batch."""
ValueAndGrad = Callable[[Arrays, Arrays, Batch, jax.Array], tuple[jax.Array, Arrays]]
"""The same arguments -> the loss, and its gradients with respect to `params`."""


def accumulated_value_and_grad(loss_fn: LossFn, grad_accum_steps: int, mesh: AnyMesh | None = None) -> ValueAndGrad:
    """Return `jax.value_and_grad(loss_fn)`, computed for `grad_accum_steps` micro-batches one after the other.

    Loss and gradients are the means over the micro-batches; each has a key of its own.
    """
    value_and_grad = jax.value_and_grad(loss_fn)
    if grad_accum_steps == 1:
        return value_and_grad

    def accumulated(params: Arrays, buffers: Arrays, batch: Batch, key: jax.Array) -> tuple[jax.Array, Arrays]:
        def add(total: tuple[jax.Array, Arrays], part: tuple[jax.Array, Batch]):
            index, micro_batch = part
            part_key = jax.random.fold_in(key, jnp.uint32(ACCUMULATION) - index)
            result = value_and_grad(params, buffers, split_batch(micro_batch, mesh), part_key)
            return jax.tree.map(jnp.add, total, result), None

        # Every grad_accum_steps-th image: each device then holds its share of a micro-batch in its share of the batch.
        micro_batches = jax.tree.map(lambda x: x.reshape(-1, grad_accum_steps, *x.shape[1:]).swapaxes(0, 1), batch)
        zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(value_and_grad, params, buffers, batch, key))
        indices = jnp.arange(grad_accum_steps, dtype=jnp.uint32)
        total, _ = jax.lax.scan(add, zeros, (indices, micro_batches))
        return jax.tree.map(lambda x: x / grad_accum_steps, total)

    return accumulated


def make_train_step(
    graphdef: nnx.GraphDef,
    tx: optax.GradientTransformation,
    *,
    label_smoothing: float = 0.0,
    ema_decay: float | None = None,
    mixup: Mixup | None = None,
    random_erasing: RandomErasing | None = None,
    token_labeling: TokenLabeling | None = None,
    grad_accum_steps: int = 1,
    remat: bool = False,
    mesh: AnyMesh | None = None,
    fence: bool | None = None,
    inspect_gradients: Callable[[Arrays], None] | None = None,
) -> TrainStep:
    """Return the training step, compiled at its first call: (state, batch) -> (state, {"loss", "grad_norm"}).

    The input state is donated: its memory is reused, so it must not be read again. Random numbers depend only on
    (seed, step). For a model that returns several logits in training (distilled ones), the loss is the mean of their
    losses.

    Args:
        graphdef: Graph definition of the model in training mode.
        tx: Optimizer for the flat dictionary of parameters.
        label_smoothing: Label smoothing for integer labels; `mixup` has its own.
        ema_decay: Decay of the moving average; None if the state has none.
        mixup: Mixes the images and computes the targets; None disables it.
        random_erasing: Applied after `mixup`, as in the authors' training; None disables it.
        token_labeling: Loss for a model with `aux_head`, with targets from the batch's label maps; None for others.
        grad_accum_steps: Number of micro-batches per step. Loss and gradients are those of the whole batch, but each
            micro-batch has its own dropout masks.
        remat: Whether to recompute the activations inside blocks in the backward pass.
        mesh: Devices over which state and batch are split (see parallel/mesh.py); None for one device.
        fence: Whether to keep the blocks separate in the program (see parallel/block_boundaries.py); None does so
            where it is faster, on a single CPU.
        inspect_gradients: Called with the gradients while the step is traced, for a step that looks for the first
            number that is not finite (see `t2t_jax.training.divergence`). Blocks are then separate modules, each
            under its own name, and not fenced.
    """
    inspected = inspect_gradients is not None
    fenced = (on_one_cpu(mesh) if fence is None else fence) and not inspected

    augment = make_augment(mixup, random_erasing)

    def loss_fn(params: Arrays, buffers: Arrays, batch: Batch, key: jax.Array) -> jax.Array:
        model = merge_model(graphdef, {**params, **buffers})
        model = wrap_blocks(unstack_blocks(model) if inspected else model, mesh, remat=remat, fence=fenced)
        if token_labeling is not None:
            mix = token_labeling.draw(jax.random.fold_in(key, MIX_TOKEN))
            outputs = split_batch(model(batch["image"], rngs=nnx.Rngs(dropout=key), mix=mix), mesh)
            return token_labeling.loss(outputs, batch, mix)
        outputs = model(batch["image"], rngs=nnx.Rngs(dropout=key))
        heads = split_batch(outputs if isinstance(outputs, tuple) else (outputs,), mesh)
        losses = [cross_entropy(logits, batch["label"], smoothing=label_smoothing) for logits in heads]
        return sum(losses[1:], losses[0]) / len(losses)

    value_and_grad = accumulated_value_and_grad(loss_fn, grad_accum_steps, mesh)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        # --- Augmentation ---
        key = step_key(state.key, state.step)
        batch = split_batch(augment(split_batch(batch, mesh), key), mesh)
        # --- Loss and gradients ---
        params, buffers = gather((state.params, state.buffers), mesh)
        loss, grads = value_and_grad(params, buffers, batch, key)
        grads = scatter(grads, mesh)
        if inspect_gradients is not None:
            inspect_gradients(unstack_arrays(grads))
        # --- Update ---
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None and ema_decay is not None:
            ema = update_ema(ema, {**params, **state.buffers}, ema_decay)
        new_state = state._replace(params=params, opt_state=opt_state, ema=ema, step=state.step + 1)
        return scatter(new_state, mesh), gather({"loss": loss, "grad_norm": optax.tree.norm(grads)}, mesh)

    return jax.jit(traced_on(mesh, step), donate_argnums=0)


def make_forward(
    graphdef: nnx.GraphDef, mesh: AnyMesh | None = None
) -> Callable[[Arrays, jax.Array | np.ndarray], jax.Array]:
    """Return the evaluation forward pass, compiled at its first call: (arrays, images) -> logits, float32 or wider.

    On a CPU, the batch is processed in chunks whose activations fit the caches (see
    t2t_common/evaluation/cpu_chunks.py).

    Args:
        graphdef: Graph definition of the model in evaluation mode.
        mesh: Devices over which arrays, images and logits are split (see parallel/mesh.py); None for one device.
    """

    def logits_of(arrays: Arrays, image_BxHxWxC: jax.Array) -> jax.Array:
        model = wrap_blocks(merge_model(graphdef, gather(arrays, mesh)), mesh, fence=on_one_cpu(mesh))
        logits = split_batch(model(image_BxHxWxC), mesh)
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

    def forward(arrays: Arrays, image_BxHxWxC: jax.Array | np.ndarray) -> jax.Array:
        images = jnp.asarray(image_BxHxWxC)
        in_parts = images.ndim == 4 and on_one_cpu(mesh)
        parts = num_chunks(*images.shape[:3], cores=available_cores()) if in_parts else 1
        if parts == 1:
            return logits_of(arrays, images)
        logits = jax.lax.map(functools.partial(logits_of, arrays), images.reshape(parts, -1, *images.shape[1:]))
        return jax.lax.collapse(logits, 0, 2)

    return jax.jit(traced_on(mesh, forward))
