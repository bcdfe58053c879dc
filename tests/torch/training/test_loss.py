from __future__ import annotations

import numpy as np
import pytest
import torch

from t2t_torch.training.loss import cross_entropy, soft_targets


def test_smoothed_targets_are_pytorchs_smoothing():
    logits, labels = torch.randn(6, 10, dtype=torch.float64), torch.tensor([0, 9, 3, 3, 1, 5], dtype=torch.int32)
    targets = soft_targets(labels, 10, 0.1, torch.float64)
    assert targets.dtype == torch.float64
    assert float(targets[0, 0]) == pytest.approx(0.91, rel=1e-15)
    by_labels, by_targets = cross_entropy(logits, labels, smoothing=0.1), cross_entropy(logits, targets, smoothing=0.1)
    assert float(by_labels) == pytest.approx(float(by_targets), rel=1e-14)
    expected = -(targets * logits.log_softmax(dim=-1)).sum(dim=-1).mean()
    assert float(by_targets) == pytest.approx(float(expected), rel=1e-14)


def test_cross_entropy_of_bfloat16_logits_is_float32():
    loss = cross_entropy(torch.ones(2, 4, dtype=torch.bfloat16), torch.tensor([0, 1]))
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(np.log(4), rel=1e-6)
