"""Changes of one rounding of float32, and what errors of the outputs make of the gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from parity.judgement.input_noise import perturbed, perturbed_gradients, shifted_gradients
from parity.runs.losses import Loss
from parity.runs.torch_side import TorchSide
from t2t_parity.selftest.fast_check import fast_check
from t2t_parity.selftest.pairs import make
from t2t_parity.selftest.run import try_unmutated

X = np.array([[1.0, 2.0], [3.0, -4.0]])

SQUARES = Loss("half the squares", lambda y: (y["a"] ** 2).sum() / 2, lambda y: (y["a"] ** 2).sum() / 2)


class Scaled(torch.nn.Module):
    """{"a": w x, "positive": x > 0}"""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([0.5, 2.0]))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"a": self.w * x, "positive": x > 0}


def test_every_number_moves_by_half_a_unit_of_float32s_last_place() -> None:
    ids = np.arange(3)
    moved, same = perturbed((X, ids))
    assert np.array_equal(abs(moved / X - 1), np.full(X.shape, 2.0**-24))
    assert same is ids


def test_the_gradient_of_shaken_numbers_is_off_by_a_few_roundings() -> None:
    exact = TorchSide.of(Scaled(), "float64").gradients((X,), SQUARES).params["w"]
    moved = perturbed_gradients(TorchSide.of(Scaled(), "float64"), (X,), SQUARES).params["w"]
    assert 0 < abs(moved / exact - 1).max() < 4 * 2.0**-24


def test_errors_of_the_outputs_reach_the_gradient_through_the_curvature() -> None:
    """L = (w x + e)^2 / 2 has dL/dw = (w x + e) x."""
    error = np.array([[0.1, 0.0], [0.0, -0.2]])
    found = shifted_gradients(TorchSide.of(Scaled(), "float64"), (X,), SQUARES, [error, np.zeros(X.shape)])
    wanted = ((np.array([0.5, 2.0]) * X + error) * X).sum(0)
    np.testing.assert_allclose(found.params["w"], wanted, rtol=1e-15)


@pytest.mark.parametrize("seed", [1, 3])
def test_a_mean_that_is_summed_in_another_order_is_no_error_of_a_gradient(seed: int) -> None:
    """64 numbers around 1000: each row's outputs err by the rounding of their mean, and so does the bias' gradient."""
    assert try_unmutated("offset", seed)[1] is None


@pytest.mark.parametrize("seed", [1, 3])
def test_neither_is_it_in_training_mode(seed: int) -> None:
    report = fast_check(*make("offset", seed), training=True)
    assert any(row.mode == "train" and row.precision == "float32" for row in report.rows)
    assert report.passed, report
