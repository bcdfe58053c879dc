"""The training step and the forward pass of evaluation. Twin: t2t_jax/training/step.py."""

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

from t2t_common.evaluation.cpu_chunks import cached_parts
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
"""In the key of a step's draws for augmentation. Dropout has the number of a part there and never comes near."""
MIX_TOKEN = AUGMENTATION - 1
"""The same for the exchange of tokens."""


@dataclasses.dataclass
class TrainState:
    """Everything that a training run carries from step to step, besides the position in the data; a step changes it."""

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
        """All arrays of the model as it is to be used: the average where there is one."""
        return self.raw if self.ema is None else self.ema.state


TrainStep = Callable[[TrainState, Batch], dict[str, Tensor]]


Augment = Callable[[Batch, int], Batch]


def make_augment(seed: int, mixup: Mixup | None, random_erasing: RandomErasing | None) -> Augment:
    """What a step does with a batch before the model sees it: (batch, steps done) -> batch; None leaves out."""

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
    computing: nn.Module,
    *,
    seed: int,
    label_smoothing: float = 0.0,
    clip_grad: float | None = None,
    mixup: Mixup | None = None,
    random_erasing: RandomErasing | None = None,
    token_labeling: TokenLabeling | None = None,
    grad_accum_steps: int = 1,
) -> TrainStep:
    """The step: (state, batch) -> {"loss", "grad_norm"}, of all processes together; `state` is changed.

    Randomness is keyed by (seed, step). A model that returns several logits in training (distilled ones) gets the mean
    of their losses.

    Args:
        computing: images to logits with the parameters of the state's model (see `Computing`), in training mode; in
            DistributedDataParallel where several processes train together.
        seed: of all draws.
        label_smoothing: for integer labels, where `mixup` does not smooth them.
        clip_grad: largest global norm of the gradients; None does not clip.
        mixup: mixes the images and makes the targets; None leaves both alone.
        random_erasing: comes after `mixup`, as in the authors' training; None erases nothing.
        token_labeling: for a model with `aux_head`: its targets come from the batch's label maps; None for others.
        grad_accum_steps: parts in which a batch is computed; loss and gradients are the whole batch's, but each part
            has dropout masks of its own.
    """

    augment = make_augment(seed, mixup, random_erasing)

    def loss_fn(batch: Batch, key: tuple[int, ...]) -> Tensor:
        if token_labeling is not None:
            mix = token_labeling.draw(np.random.default_rng(key))
            return token_labeling.loss(computing(batch["image"], mix=mix), batch, mix)
        outputs = computing(batch["image"])
        heads = outputs if isinstance(outputs, tuple) else (outputs,)
        losses = [cross_entropy(logits, batch["label"], smoothing=label_smoothing) for logits in heads]
        return sum(losses[1:], losses[0]) / len(losses)

    def backward(batch: Batch, step: int) -> Tensor:
        """Adds up the gradients of all parts; their mean loss."""
        device = batch["image"].device
        total = torch.zeros((), device=device)
        for part in range(grad_accum_steps):
            is_last = part + 1 == grad_accum_steps
            # Every grad_accum_steps-th image, so that each process finds its share of a part in its share of the batch.
            mine = {name: array[part::grad_accum_steps] for name, array in batch.items()}
            with _drawing((seed, step, part, process_index()), device), _gathering(computing, is_last):
                loss = loss_fn(mine, (seed, step, MIX_TOKEN, part)) / grad_accum_steps
                loss.backward()
            total = total + loss.detach()
        return total

    def train_step(state: TrainState, batch: Batch) -> dict[str, Tensor]:
        state.optimizer.zero_grad()
        loss = backward(augment(batch, state.step), state.step)
        parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if clip_grad is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, clip_grad, norm)
        state.optimizer.step()
        state.scheduler.step()
        if state.ema is not None:
            state.ema.update(state.model)
        state.step += 1
        return {"loss": mean_of_processes(loss), "grad_norm": norm}

    return train_step


@contextlib.contextmanager
def _drawing(key: tuple[int, ...], device: torch.device) -> Iterator[None]:
    """While open, PyTorch's generators draw by `key`; afterwards they are as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1)))
        yield


def _gathering(computing: nn.Module, is_last: bool) -> contextlib.AbstractContextManager[Any]:
    """Processes exchange gradients once in a step, with the last part's backward pass."""
    if isinstance(computing, DistributedDataParallel) and not is_last:
        return computing.no_sync()
    return contextlib.nullcontext()


def make_forward(
    model: nn.Module, *, dtype: torch.dtype | None = None
) -> Callable[[Mapping[str, Tensor], Tensor | np.ndarray], np.ndarray]:
    """Evaluation's forward pass: (arrays, images (B, H, W, C)) -> logits in numpy, float32 or wider.

    On a CPU some images at a time, whose activations stay in the caches (see t2t_common/evaluation/cpu_chunks.py).

    Args:
        model: in evaluation mode; its own weights are not used.
        dtype: of the computation; None for that of the arrays.
    """
    device = next(model.parameters()).device

    @torch.inference_mode()
    def forward(arrays: Mapping[str, Tensor], image_BxHxWxC: Tensor | np.ndarray) -> np.ndarray:
        images = torch.as_tensor(image_BxHxWxC).to(device).permute(0, 3, 1, 2).contiguous()
        B, _, H, W = images.shape
        parts = cached_parts(B, H, W, cores=torch.get_num_threads()) if device.type == "cpu" else 1
        weights = in_dtype(arrays, dtype)
        found = [functional_call(model, weights, (part.to(dtype or part.dtype),)) for part in images.chunk(parts)]
        logits = torch.cat(found)
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).cpu().numpy()

    return forward
