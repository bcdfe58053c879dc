"""The losses are the same scalar in both frameworks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from parity.losses import Loss, cross_entropy, default_loss, projection
from tests.golden import rel_f
from tests.parity.pairs import images


def both(loss: Loss, array: np.ndarray) -> tuple[float, float]:
    return float(loss.torch(torch.from_numpy(array))), float(loss.jax(jnp.asarray(array)))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_by_hand(x64: None, smoothing: float):
    logits, labels = images(4, 5), np.array([0, 4, 2, 2])
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    target = (1 - smoothing) * np.eye(5)[labels] + smoothing / 5
    expected = -(target * log_p).sum(axis=1).mean()
    for value in both(cross_entropy(labels, smoothing), logits):
        assert rel_f(value, expected) < 1e-14


def test_soft_targets(x64: None):
    targets = np.abs(images(4, 5, seed=3))
    a, b = both(cross_entropy(targets / targets.sum(axis=1, keepdims=True)), images(4, 5))
    assert rel_f(a, b) < 1e-14


def test_a_projection_sees_every_element_and_follows_the_layout(x64: None):
    axes = (0, 2, 3, 1)
    loss, x = projection(axes), images(2, 3, 4, 5)
    ours = loss.torch(torch.from_numpy(x))
    assert rel_f(loss.jax(jnp.asarray(x.transpose(axes))), ours) < 1e-14
    gradient = jax.grad(projection().jax)(jnp.asarray(x))
    assert (np.asarray(gradient) != 0).all()
    assert np.linalg.norm(gradient) == pytest.approx(1, rel=0.1)


def test_the_default_depends_on_the_output(x64: None):
    assert "cross entropy" in default_loss([(4, 5)], [None]).name
    assert "projection" in default_loss([(4, 1)], [None]).name
    assert "projection" in default_loss([(4, 5, 6)], [None]).name
    pair = default_loss([(4, 5), (4, 3, 2)], [None, None])
    outputs = images(4, 5), images(4, 3, 2)
    ours = float(pair.torch(tuple(torch.from_numpy(x) for x in outputs)))
    assert rel_f(float(pair.jax(tuple(jnp.asarray(x) for x in outputs))), ours) < 1e-14
    single = [both(default_loss([x.shape], [None]), x)[0] for x in outputs]
    assert ours == pytest.approx(sum(single))
