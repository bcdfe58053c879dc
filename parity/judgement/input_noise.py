"""What a change of the size of one rounding of float32 makes of a model: how noisy its numbers are by nature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from parity.random_draws.matching import Handed
from parity.recording.capture import Call
from parity.recording.channels import Axes
from parity.recording.structure import tensors, with_tensors
from parity.runs.losses import Loss
from parity.runs.torch_side import Gradients, TorchSide


def shake(arrays: Sequence[np.ndarray], seed: int = 0) -> tuple[np.ndarray, ...]:
    """The arrays with every number changed by half a unit of float32's last place, up or down."""
    draw = np.random.RandomState(seed)
    return tuple(
        x * (1 + 2.0**-24 * draw.choice((-1.0, 1.0), x.shape)) if np.issubdtype(x.dtype, np.inexact) else x
        for x in arrays
    )


def shaken_gradients(
    side: TorchSide, arrays: Sequence[np.ndarray], loss: Loss, draws: Handed | None = None
) -> Gradients:
    """Loss and gradients after the inputs and all parameters are shaken; those of `side` stay so."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for param in side.model.parameters():
            if param.is_floating_point() or param.is_complex():
                signs = torch.randint(0, 2, param.shape, generator=draw).to(param.device) * 2 - 1
                param.mul_(1 + 2.0**-24 * signs)
    return side.gradients(shake(arrays), loss, draws=draws)


def shifted_gradients(
    side: TorchSide,
    arrays: Sequence[np.ndarray],
    loss: Loss,
    errors: Sequence[np.ndarray],
    draws: Handed | None = None,
) -> Gradients:
    """Loss and gradients where the loss sees the model's outputs with `errors` added to them.

    So much of a gradient's error is handed on by the errors of the outputs, by way of the loss' curvature.
    """

    def shifted(output: Any) -> torch.Tensor:
        pairs = zip(tensors(output), errors, strict=True)
        moved = [x + torch.from_numpy(error).to(x) if _moving(x) else x for x, error in pairs]
        return loss.torch(with_tensors(output, moved))

    return side.gradients(arrays, Loss(loss.name, shifted, loss.jax), draws=draws)


def output_errors(wanted: Call, given: Call, axes: Sequence[Axes]) -> list[np.ndarray]:
    """JAX's float32 outputs less PyTorch's float64 ones, in PyTorch's layout; `axes` turn PyTorch's into JAX's."""
    back = [None if own is None else np.argsort(own) for own in axes]
    found = [a if own is None else a.transpose(own) for a, own in zip(given.outputs, back, strict=True)]
    with np.errstate(invalid="ignore"):  # infinities on both sides
        return [
            a.astype(b.dtype) - b if np.issubdtype(b.dtype, np.inexact) else np.zeros(b.shape)
            for a, b in zip(found, wanted.outputs, strict=True)
        ]


def _moving(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()
