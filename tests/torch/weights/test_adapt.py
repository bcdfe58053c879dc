"""Weights fitted to other channels: what is exact is exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from parity.carry.random_weights import randomize
from t2t_torch import create_model
from t2t_torch.weights.adapt import adapt_weights
from tests.support.golden import rel_f

# ---- channels ----

FIRST_LAYERS = [
    ("t2t_vit_micro", {"token_dim": 64}),
    ("t2t_vit_micro", {"token_dim": 64, "tokens_type": "transformer"}),
    ("t2t_vit_micro", {"tokens_type": "convolution"}),
    ("vit_deit_tiny_distilled_patch16_224", {"embed_dim": 24, "depth": 1}),
]


def model(name: str, in_chans: int, **arguments: object) -> nn.Module:
    torch.manual_seed(0)
    net = create_model(name, img_size=32, num_classes=5, in_chans=in_chans, **arguments).double().eval()
    randomize(net)  # so that the norm's scales and shifts differ between the channels
    return net


def images(in_chans: int) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(0).standard_normal((2, in_chans, 32, 32)))


def adapted(source: nn.Module, name: str, in_chans: int, **arguments: object) -> nn.Module:
    net = model(name, in_chans, **arguments)
    net.load_state_dict(adapt_weights(source.state_dict(), net).weights)
    return net


@pytest.mark.parametrize(("name", "arguments"), FIRST_LAYERS)
@pytest.mark.parametrize(("old", "new"), [(3, 1), (3, 6), (3, 9), (1, 3), (2, 4), (4, 1)])
def test_the_same_image_in_other_channels_gives_the_same(name: str, arguments: dict, old: int, new: int):
    """Grey as one channel or as several; channels repeated whole."""
    source = model(name, old, **arguments)
    x = images(old) if new > old else images(1).expand(-1, old, -1, -1)
    x_new = x.repeat(1, new // old, 1, 1) if new > old else x[:, :1]
    with torch.no_grad():
        assert rel_f(adapted(source, name, new, **arguments)(x_new), source(x)) <= 1e-13


@pytest.mark.parametrize(("name", "arguments"), FIRST_LAYERS)
def test_one_channel_in_float32_is_as_good_as_float32_gets(name: str, arguments: dict):
    source, net = model(name, 3, **arguments), model(name, 1, **arguments)
    fitted = adapt_weights({key: value.float() for key, value in source.state_dict().items()}, net.float()).weights
    assert {value.dtype for value in fitted.values()} == {torch.float32}
    net.load_state_dict(fitted)
    x = images(1).float()
    with torch.no_grad():
        assert rel_f(net(x), source(x.double().expand(-1, 3, -1, -1))) <= 1e-5


def test_linear_layers_take_the_channels_in_turn_too():
    """Features are (C, kh, kw): channel major."""
    source, name = model("t2t_vit_micro", 3), "tokens_to_token.attention1.kqv.weight"
    old = source.state_dict()[name].reshape(48, 3, 49)
    new = adapted(source, "t2t_vit_micro", 5).state_dict()[name].reshape(48, 5, 49)
    for channel in range(5):
        assert rel_f(new[:, channel], old[:, channel % 3] * 3 / 5) <= 1e-15


def test_neither_weights_nor_model_are_changed():
    source, net = (
        model("t2t_vit_micro", 3, tokens_type="transformer"),
        model("t2t_vit_micro", 1, tokens_type="transformer"),
    )
    before = [{key: value.clone() for key, value in m.state_dict().items()} for m in (source, net)]
    adapt_weights(source.state_dict(), net)
    for m, old in zip((source, net), before, strict=True):
        assert all(torch.equal(value, old[key]) for key, value in m.state_dict().items())


@pytest.mark.parametrize("wrong", [48, 98, 147 * 49])
def test_a_first_layer_of_no_whole_windows_is_left_to_the_check(wrong: int):
    weights = model("t2t_vit_micro", 3).state_dict()
    weights["tokens_to_token.attention1.norm1.weight"] = torch.ones(wrong)
    with pytest.raises(ValueError, match=r"attention1\.norm1\.weight \(\d+,\) instead of \(49,\)"):
        adapt_weights(weights, model("t2t_vit_micro", 1))
