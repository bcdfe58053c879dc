"""Loss functions. Twin: t2t_jax/training/loss.py."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def soft_targets(labels_B: Tensor, num_classes: int, smoothing: float, dtype: torch.dtype) -> Tensor:
    """Convert labels (B,) to smoothed one-hot targets (B, num_classes): 1 - s + s/n for the label, s/n elsewhere."""
    rest = smoothing / num_classes
    return F.one_hot(labels_B.long(), num_classes).to(dtype) * (1.0 - smoothing) + rest


def cross_entropy(logits_BxN: Tensor, targets: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Return the mean cross entropy, computed in float32 or wider.

    Args:
        logits_BxN: Logits (B, num_classes).
        targets: Labels (B,), or targets (B, num_classes), which are used as they are.
        smoothing: Label smoothing for labels (B,).
    """
    logits_BxN = logits_BxN.to(torch.promote_types(logits_BxN.dtype, torch.float32))
    if targets.ndim == 1:
        return F.cross_entropy(logits_BxN, targets.long(), label_smoothing=smoothing)
    return F.cross_entropy(logits_BxN, targets.to(logits_BxN.dtype))
