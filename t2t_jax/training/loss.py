"""Loss functions. Twin: t2t_torch/training/loss.py."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def soft_targets(labels_B: jax.Array, num_classes: int, smoothing: float, dtype: jnp.dtype) -> jax.Array:
    """Convert labels (B,) to smoothed one-hot targets (B, num_classes): 1 - s + s/n for the label, s/n elsewhere."""
    rest = smoothing / num_classes
    return jax.nn.one_hot(labels_B, num_classes, dtype=dtype) * (1.0 - smoothing) + jnp.asarray(rest, dtype)


def cross_entropy(logits_BxN: jax.Array, targets: jax.Array, *, smoothing: float = 0.0) -> jax.Array:
    """Return the mean cross entropy, computed in float32 or wider.

    Args:
        logits_BxN: Logits (B, num_classes).
        targets: Labels (B,), or targets (B, num_classes), which are used as they are.
        smoothing: Label smoothing for labels (B,), as PyTorch's `label_smoothing`.
    """
    logits_BxN = logits_BxN.astype(jnp.promote_types(logits_BxN.dtype, jnp.float32))
    if targets.ndim == 1:
        targets = soft_targets(targets, logits_BxN.shape[-1], smoothing, logits_BxN.dtype)
    return -jnp.mean(jnp.sum(targets.astype(logits_BxN.dtype) * jax.nn.log_softmax(logits_BxN), axis=-1))
