"""Training step and evaluation forward pass. Twin: t2t_jax/training/step.py."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel

from t2t_common.evaluation.cpu_chunks import num_chunks
from t2t_torch.training.compute_dtype import in_dtype
from t2t_torch.training.loss import cross_entropy
from t2t_torch.training.mixup import Mixup
from t2t_torch.training.optim import Ema
from t2t_torch.training.processes import mean_of_processes, process_count, process_index
from t2t_torch.training.random_erasing import RandomErasing
from t2t_torch.training.token_labeling import TokenLabeling

Batch = Mapping[str, Tensor]
"""{"image": (B, C, H, W) float, "label": (B,) int or (B, num_classes) float}; for token labeling also "label_scores"
and "label_classes" (B, K, h, w) and "crop" (B, 4)."""

AUGMENTATION = 2**32 - 1
"""Part of the seed of a step's augmentation; dropout uses the micro-batch index there, which stays below this value."""
MIX_TOKEN = AUGMENTATION - 1
"""The same for MixToken."""


@dataclasses.dataclass
class TrainState:
    """State of a training run between steps, except for the position in the data; a step changes it in place."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    ema: Ema | None
    step: int = 0

    @property
    def raw(self) -> dict[str, Tensor]:
        """All arrays of the model as trained."""
        return self.model.state_dict()

    @property
    def best(self) -> dict[str, Tensor]:
        """All arrays to evaluate: the moving average if there is one, else the trained arrays."""
        return self.raw if self.ema is None else self.ema.state


TrainStep = Callable[[TrainState, Batch], dict[str, Tensor]]


Augment = Callable[[Batch, int], Batch]


def make_augment(seed: int, mixup: Mixup | None, random_erasing: RandomErasing | None) -> Augment:
    """Return the augmentation of a step: (batch, completed steps) -> batch. Arguments that are None are skipped."""

    def augment(batch: Batch, step: int) -> Batch:
        rng = np.random.default_rng((seed, step, AUGMENTATION))
        own = {"part": process_index(), "parts": process_count()}
        images, labels = batch["image"], batch["label"]
        if mixup is not None:
            images, labels = mixup(images, labels, rng, **own)
        if random_erasing is not None:
            images = random_erasing(images, rng, **own)
        return {**batch, "image": images, "label": labels}

    return augment


def make_train_step(
    forward_model: nn.Module,
    *,
    seed: int,
    label_smoothing: float = 0.0,
    clip_grad: float | None = None,
    mixup: Mixup | None = None,
    random_erasing: RandomErasing | None = None,
    token_labeling: TokenLabeling | None = None,
    grad_accum_steps: int = 1,
) -> TrainStep:
    """Return the training step: (state, batch) -> {"loss", "grad_norm"} over all processes; it changes `state`.

    Random numbers depend only on (seed, step). For a model that returns several logits in training (distilled ones),
    the loss is the mean of their losses.

    Args:
        forward_model: Module in training mode that maps images to logits with the parameters of the state's model (see
            `WithComputeDtype`); wrapped in DistributedDataParallel if several processes train together.
        seed: Seed for all random numbers.
        label_smoothing: Label smoothing for integer labels; `mixup` has its own.
        clip_grad: Maximum global norm of the gradients; None disables clipping.
        mixup: Mixes the images and computes the targets; None disables it.
        random_erasing: Applied after `mixup`, as in the authors' training; None disables it.
        token_labeling: Loss for a model with `aux_head`, with targets from the batch's label maps; None for others.
        grad_accum_steps: Number of micro-batches per step. Loss and gradients are those of the whole batch, but each
            micro-batch has its own dropout masks.
    """

    augment = make_augment(seed, mixup, random_erasing)

    def loss_fn(batch: Batch, key: tuple[int, ...]) -> Tensor:
        if token_labeling is not None:
            mix = token_labeling.draw(np.random.default_rng(key))
            return token_labeling.loss(forward_model(batch["image"], mix=mix), batch, mix)
        outputs = forward_model(batch["image"])
        heads = outputs if isinstance(outputs, tuple) else (outputs,)
        losses = [cross_entropy(logits, batch["label"], smoothing=label_smoothing) for logits in heads]
        return sum(losses[1:], losses[0]) / len(losses)

    def backward(batch: Batch, step: int) -> Tensor:
        """Accumulate the gradients of all micro-batches; return their mean loss."""
        device = batch["image"].device
        total = torch.zeros((), device=device)
        for part in range(grad_accum_steps):
            is_last = part + 1 == grad_accum_steps
            # Every grad_accum_steps-th image, so that each process already holds its share of every micro-batch.
            micro_batch = {name: array[part::grad_accum_steps] for name, array in batch.items()}
            with _seeded((seed, step, part, process_index()), device), _gradient_sync(forward_model, is_last):
                loss = loss_fn(micro_batch, (seed, step, MIX_TOKEN, part)) / grad_accum_steps
                loss.backward()
            total = total + loss.detach()
        return total

    def train_step(state: TrainState, batch: Batch) -> dict[str, Tensor]:
        # --- Augmentation, loss and gradients ---
        state.optimizer.zero_grad()
        loss = backward(augment(batch, state.step), state.step)
        # --- Clipping ---
        parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if clip_grad is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, clip_grad, norm)
        # --- Update ---
        state.optimizer.step()
        state.scheduler.step()
        if state.ema is not None:
            state.ema.update(state.model)
        state.step += 1
        return {"loss": mean_of_processes(loss), "grad_norm": norm}

    return train_step


@contextlib.contextmanager
def _seeded(key: tuple[int, ...], device: torch.device) -> Iterator[None]:
    """Seed PyTorch's generators with `key` while open, and restore their state afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1)))
        yield


def _gradient_sync(forward_model: nn.Module, is_last: bool) -> contextlib.AbstractContextManager[Any]:
    """Return a context that synchronizes gradients only in the last micro-batch's backward pass, once per step."""
    if isinstance(forward_model, DistributedDataParallel) and not is_last:
        return forward_model.no_sync()
    return contextlib.nullcontext()


def make_forward(
    model: nn.Module, *, dtype: torch.dtype | None = None
) -> Callable[[Mapping[str, Tensor], Tensor | np.ndarray], np.ndarray]:
    """Return the evaluation forward pass: (arrays, images (B, H, W, C)) -> logits in numpy, float32 or wider.

    On a CPU, the batch is processed in chunks whose activations fit the caches (see
    t2t_common/evaluation/cpu_chunks.py).

    Args:
        model: Model in evaluation mode; its own weights are not used.
        dtype: Computation dtype; None for that of the arrays.
    """
    device = next(model.parameters()).device

    @torch.inference_mode()
    def forward(arrays: Mapping[str, Tensor], image_BxHxWxC: Tensor | np.ndarray) -> np.ndarray:
        images = torch.as_tensor(image_BxHxWxC).to(device).permute(0, 3, 1, 2).contiguous()
        B, _, H, W = images.shape
        parts = num_chunks(B, H, W, cores=torch.get_num_threads()) if device.type == "cpu" else 1
        weights = in_dtype(arrays, dtype)
        found = [functional_call(model, weights, (part.to(dtype or part.dtype),)) for part in images.chunk(parts)]
        logits = torch.cat(found)
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).cpu().numpy()

    return forward
