"""Sensitivity of a model to perturbations of the size of one float32 rounding: the noise floor of its values."""

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


def perturbed(arrays: Sequence[np.ndarray], seed: int = 0) -> tuple[np.ndarray, ...]:
    """Return the arrays with every value multiplied by 1 + 2^-24 or 1 - 2^-24 at random (half a float32 ulp)."""
    draw = np.random.RandomState(seed)
    return tuple(
        x * (1 + 2.0**-24 * draw.choice((-1.0, 1.0), x.shape)) if np.issubdtype(x.dtype, np.inexact) else x
        for x in arrays
    )


def perturbed_gradients(
    side: TorchSide, arrays: Sequence[np.ndarray], loss: Loss, draws: Handed | None = None
) -> Gradients:
    """Compute loss and gradients after perturbing the inputs and all parameters; `side.model` is modified in place."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for param in side.model.parameters():
            if param.is_floating_point() or param.is_complex():
                signs = torch.randint(0, 2, param.shape, generator=draw).to(param.device) * 2 - 1
                param.mul_(1 + 2.0**-24 * signs)
    return side.gradients(perturbed(arrays), loss, draws=draws)


def shifted_gradients(
    side: TorchSide,
    arrays: Sequence[np.ndarray],
    loss: Loss,
    errors: Sequence[np.ndarray],
    draws: Handed | None = None,
) -> Gradients:
    """Compute loss and gradients with `errors` added to the model's outputs before the loss.

    The change is the part of a gradient's error that the output errors cause through the curvature of the loss.
    """

    def shifted(output: Any) -> torch.Tensor:
        pairs = zip(tensors(output), errors, strict=True)
        moved = [x + torch.from_numpy(error).to(x) if _moving(x) else x for x, error in pairs]
        return loss.torch(with_tensors(output, moved))

    return side.gradients(arrays, Loss(loss.name, shifted, loss.jax), draws=draws)


def output_errors(wanted: Call, given: Call, axes: Sequence[Axes]) -> list[np.ndarray]:
    """Return the port's float32 outputs minus PyTorch's float64 outputs, in PyTorch's layout.

    `axes` are the permutations from PyTorch's layout to that of `given`.
    """
    back = [None if own is None else np.argsort(own) for own in axes]
    found = [a if own is None else a.transpose(own) for a, own in zip(given.outputs, back, strict=True)]
    with np.errstate(invalid="ignore"):  # infinities on both sides
        return [
            a.astype(b.dtype) - b if np.issubdtype(b.dtype, np.inexact) else np.zeros(b.shape)
            for a, b in zip(found, wanted.outputs, strict=True)
        ]


def _moving(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()
