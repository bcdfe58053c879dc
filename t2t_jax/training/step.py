"""The training step and the forward pass of evaluation: pure functions of plain pytrees, compiled once."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from t2t_common.evaluation.cpu_chunks import available_cores, cached_parts
from t2t_jax.models.scan_blocks import unstack_arrays, unstack_blocks
from t2t_jax.ops.platform import traced_on
from t2t_jax.parallel.block_boundaries import border_blocks, on_one_cpu
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
"""Folded into a step's key for augmentation. Dropout folds in 0, 1, 2, ... and never comes near."""
ACCUMULATION = AUGMENTATION - 1
"""Folded in, less 0, 1, 2, ..., for the parts of a batch."""
MIX_TOKEN = 2**31
"""Folded in for the exchange of tokens, halfway between the others."""


class TrainState(NamedTuple):
    """Everything that a training run carries from step to step, besides the position in the data."""

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
        """All arrays of the model as it is to be used: the average where there is one."""
        return self.raw if self.ema is None else self.ema


def init_state(
    params: Arrays, buffers: Arrays, tx: optax.GradientTransformation, *, seed: int, average: bool
) -> TrainState:
    """The state before the first step; the average, if wanted, begins at the initial weights."""
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
    """What a step does with a batch before the model sees it: (batch, key of the step) -> batch; None leaves out."""

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
    """The key of the step after `step`, from the raw key of the state."""
    return jax.random.fold_in(jax.random.wrap_key_data(key), step)


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
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """The step, compiled at its first call: (state, batch) -> (state, {"loss", "grad_norm"}).

    The state passed in is donated: its memory is reused, so it must not be read again. Randomness is keyed by
    (seed, step). A model that returns several logits in training (distilled ones) gets the mean of their
    losses.

    Args:
        graphdef: of the model in training mode.
        tx: optimiser over the flat dictionary of parameters.
        label_smoothing: for integer labels, where `mixup` does not smooth them.
        ema_decay: None if the state keeps no average.
        mixup: mixes the images and makes the targets; None leaves both alone.
        random_erasing: comes after `mixup`, as in the authors' training; None erases nothing.
        token_labeling: for a model with `aux_head`: its targets come from the batch's label maps; None for others.
        grad_accum_steps: parts in which a batch is computed; loss and gradients are the whole batch's, but each part
            has dropout masks of its own.
        remat: whether activations inside blocks are computed again in the backward pass.
        mesh: devices that state and batch are split over (see mesh.py); None for one device.
        fence: whether blocks stay apart in the program (see blocks.py); None where that is faster, on one CPU.
    """
    fenced = on_one_cpu(mesh) if fence is None else fence

    augment = make_augment(mixup, random_erasing)

    def loss_fn(params: Arrays, buffers: Arrays, batch: Batch, key: jax.Array) -> jax.Array:
        model = merge_model(graphdef, {**params, **buffers})
        if _observers:  # who looks into the step wants to know every block by its name
            model = unstack_blocks(model)
        model = border_blocks(model, mesh, remat=remat, fence=fenced and not _observers)
        if token_labeling is not None:
            mix = token_labeling.draw(jax.random.fold_in(key, MIX_TOKEN))
            outputs = split_batch(model(batch["image"], rngs=nnx.Rngs(dropout=key), mix=mix), mesh)
            return token_labeling.loss(outputs, batch, mix)
        outputs = model(batch["image"], rngs=nnx.Rngs(dropout=key))
        heads = split_batch(outputs if isinstance(outputs, tuple) else (outputs,), mesh)
        losses = [cross_entropy(logits, batch["label"], smoothing=label_smoothing) for logits in heads]
        return sum(losses[1:], losses[0]) / len(losses)

    def value_and_grad(params: Arrays, buffers: Arrays, batch: Batch, key: jax.Array) -> tuple[jax.Array, Arrays]:
        if grad_accum_steps == 1:
            return jax.value_and_grad(loss_fn)(params, buffers, batch, key)

        def add(total: tuple[jax.Array, Arrays], part: tuple[jax.Array, Batch]):
            part_key = jax.random.fold_in(key, jnp.uint32(ACCUMULATION) - part[0])
            result = jax.value_and_grad(loss_fn)(params, buffers, split_batch(part[1], mesh), part_key)
            return jax.tree.map(jnp.add, total, result), None

        # Every grad_accum_steps-th image, so that each device finds its share of a part in its share of the batch.
        parts = jax.tree.map(lambda x: x.reshape(-1, grad_accum_steps, *x.shape[1:]).swapaxes(0, 1), batch)
        zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(jax.value_and_grad(loss_fn), params, buffers, batch, key))
        total, _ = jax.lax.scan(add, zeros, (jnp.arange(grad_accum_steps, dtype=jnp.uint32), parts))
        return jax.tree.map(lambda x: x / grad_accum_steps, total)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        key = step_key(state.key, state.step)
        batch = split_batch(augment(split_batch(batch, mesh), key), mesh)
        params, buffers = gather((state.params, state.buffers), mesh)
        loss, grads = value_and_grad(params, buffers, batch, key)
        grads = scatter(grads, mesh)
        _show(grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None and ema_decay is not None:
            ema = update_ema(ema, {**params, **state.buffers}, ema_decay)
        new_state = state._replace(params=params, opt_state=opt_state, ema=ema, step=state.step + 1)
        return scatter(new_state, mesh), gather({"loss": loss, "grad_norm": optax.tree.norm(grads)}, mesh)

    return jax.jit(traced_on(mesh, step), donate_argnums=0)


_observers: list[Callable[[Arrays], None]] = []


@contextlib.contextmanager
def observing(observer: Callable[[Arrays], None]) -> Iterator[None]:
    """While open, `observer` gets the gradients of every training step that is traced."""
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)


def _show(grads: Arrays) -> None:
    for observer in _observers:
        observer(unstack_arrays(grads))


def make_forward(
    graphdef: nnx.GraphDef, mesh: AnyMesh | None = None
) -> Callable[[Arrays, jax.Array | np.ndarray], jax.Array]:
    """Evaluation's forward pass, compiled at its first call: (arrays, images) -> logits, float32 or wider.

    On a CPU some images at a time, whose activations stay in the caches (see t2t_common/evaluation/cpu_chunks.py).

    Args:
        graphdef: of the model in evaluation mode.
        mesh: devices that arrays and images are split over (see mesh.py), and the logits too; None for one device.
    """

    def logits_of(arrays: Arrays, image_BxHxWxC: jax.Array) -> jax.Array:
        model = border_blocks(merge_model(graphdef, gather(arrays, mesh)), mesh, fence=on_one_cpu(mesh))
        logits = split_batch(model(image_BxHxWxC), mesh)
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

    def forward(arrays: Arrays, image_BxHxWxC: jax.Array | np.ndarray) -> jax.Array:
        images = jnp.asarray(image_BxHxWxC)
        in_parts = images.ndim == 4 and on_one_cpu(mesh)
        parts = cached_parts(*images.shape[:3], cores=available_cores()) if in_parts else 1
        if parts == 1:
            return logits_of(arrays, images)
        logits = jax.lax.map(functools.partial(logits_of, arrays), images.reshape(parts, -1, *images.shape[1:]))
        return jax.lax.collapse(logits, 0, 2)

    return jax.jit(traced_on(mesh, forward))
