from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from t2t_jax.training.loss import cross_entropy

pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture
def logits() -> np.ndarray:
    return 3 * np.random.RandomState(0).standard_normal((6, 10))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_with_labels_is_pytorchs(logits: np.ndarray, smoothing: float):
    labels = np.array([0, 9, 3, 3, 1, 5])
    expected = F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels), label_smoothing=smoothing)
    loss = cross_entropy(jnp.asarray(logits), jnp.asarray(labels), smoothing=smoothing)
    assert float(loss) == pytest.approx(expected.item(), rel=1e-13)


def test_cross_entropy_with_soft_targets_is_pytorchs(logits: np.ndarray):
    targets = np.random.RandomState(1).dirichlet(np.ones(10), 6)
    expected = F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(targets))
    loss = cross_entropy(jnp.asarray(logits), jnp.asarray(targets), smoothing=0.1)  # left alone
    assert float(loss) == pytest.approx(expected.item(), rel=1e-13)


def test_cross_entropy_of_bfloat16_logits_is_float32():
    loss = cross_entropy(jnp.ones((2, 4), jnp.bfloat16), jnp.array([0, 1]))
    assert loss.dtype == jnp.float32
    assert float(loss) == pytest.approx(np.log(4), rel=1e-6)
