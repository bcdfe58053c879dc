"""Stochastic depth, initialisation, and the checks of what comes in."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from t2t_torch.models.layers import DropPath, check_images, init_weights


def test_drop_path_drops_whole_samples_and_rescales_the_others():
    torch.manual_seed(0)
    x = torch.ones(2000, 3, 5)
    y = DropPath(0.2)(x)
    values = y.flatten(1)
    assert torch.equal(values, values[:, :1].expand_as(values))  # one draw for each sample
    assert set(values[:, 0].tolist()) == {0.0, 1.25}
    assert y.mean().item() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_drop_path_is_the_identity_in_evaluation(rate: float):
    x = torch.randn(4, 3)
    assert torch.equal(DropPath(rate).eval()(x), x)


def test_drop_path_of_one_drops_everything():
    assert DropPath(1.0)(torch.ones(4, 3)).abs().sum() == 0


def test_init_weights():
    torch.manual_seed(0)
    linear, norm = nn.Linear(400, 300), nn.LayerNorm(8)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    convolution = nn.Conv2d(3, 4, 2)
    before = convolution.weight.clone()
    nn.Sequential(linear, norm, convolution).apply(init_weights)
    assert linear.weight.std().item() == pytest.approx(0.02, rel=0.01)
    assert linear.weight.mean().item() == pytest.approx(0.0, abs=3e-4)
    # The bounds are absolute (+-2): cut at two standard deviations, nothing would lie beyond 0.04.
    assert 0.04 < linear.weight.abs().max() < 0.15
    assert torch.equal(linear.bias, torch.zeros(300))
    assert torch.equal(norm.weight, torch.ones(8))
    assert torch.equal(norm.bias, torch.zeros(8))
    assert torch.equal(convolution.weight, before)


@pytest.mark.parametrize("shape", [(3, 32, 48), (2, 1, 32, 48), (2, 3, 48, 32), (2, 32, 48, 3)])
def test_check_images_names_what_came_and_what_was_expected(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match="expected images") as error:
        check_images(torch.zeros(shape), 3, (32, 48))
    assert str(shape) in str(error.value)
    assert "32, 48" in str(error.value)


def test_check_images_refuses_integers_and_accepts_its_size():
    check_images(torch.zeros(2, 3, 32, 48), 3, (32, 48))
    with pytest.raises(ValueError, match="expected floating-point images, got uint8"):
        check_images(torch.zeros(2, 3, 32, 48, dtype=torch.uint8), 3, (32, 48))
