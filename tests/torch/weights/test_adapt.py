"""Weights fitted to other image sizes and other channels: what is exact is exact."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from parity.carry.random_weights import randomize
from t2t_torch import create_model
from t2t_torch.weights.adapt import adapt_in_chans, fit, resize_pos_embed
from tests.support.golden import rel_f

# ---- positions ----


def cubic_weights(size: int, new_size: int) -> np.ndarray:
    """(new_size, size) matrix of cubic convolution, a = -0.75, half-pixel centres, edges repeated (Keys 1981)."""
    a, matrix = -0.75, np.zeros((new_size, size))
    for i in range(new_size):
        centre = (i + 0.5) * size / new_size - 0.5
        for j in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            d = abs(centre - j)
            near = (a + 2) * d**3 - (a + 3) * d**2 + 1
            far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
            matrix[i, min(max(j, 0), size - 1)] += near if d <= 1 else far
    return matrix


@pytest.mark.parametrize("grid", [(4, 6), (14, 14), (3, 2), (18, 10)])
@pytest.mark.parametrize("prefix", [1, 2])
def test_resize_is_bicubic_and_keeps_the_first_tokens(grid: tuple[int, int], prefix: int):
    table = torch.randn(1, prefix + 5 * 7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    resized = resize_pos_embed(table, (5, 7), grid, num_prefix_tokens=prefix)
    assert torch.equal(resized[:, :prefix], table[:, :prefix])
    image = table[0, prefix:].numpy().reshape(5, 7, 3)
    expected = np.einsum("yh,xw,hwc->yxc", cubic_weights(5, grid[0]), cubic_weights(7, grid[1]), image)
    assert rel_f(resized[0, prefix:], expected.reshape(-1, 3)) <= 1e-13


def test_resize_needs_the_right_grid():
    with pytest.raises(ValueError, match=r"\(1, 17, 3\) does not hold 1 \+ 3x5 tokens"):
        resize_pos_embed(torch.zeros(1, 17, 3), (3, 5), (4, 4))


def test_resize_never_computes_below_float32():
    table = torch.randn(1, 17, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    resized = resize_pos_embed(table, (4, 4), (7, 7))
    assert resized.dtype == torch.bfloat16
    assert torch.equal(resized, resize_pos_embed(table.float(), (4, 4), (7, 7)).bfloat16())


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
    net.load_state_dict(fit(source.state_dict(), net).weights)
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
    fitted = fit({key: value.float() for key, value in source.state_dict().items()}, net.float()).weights
    net.load_state_dict(fitted)
    x = images(1).float()
    with torch.no_grad():
        assert rel_f(net(x), source(x.double().expand(-1, 3, -1, -1))) <= 1e-5


@pytest.mark.parametrize("in_chans", [2, 4, 5, 7])
@pytest.mark.parametrize("name", ["patch_embed.proj.weight", "tokens_to_token.soft_split0.weight"])
def test_convolutions_as_timm_does(in_chans: int, name: str):
    """adapt_input_conv: the channels in turn, times 3 / in_chans."""
    weight = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    weights = {name: weight}
    done = adapt_in_chans(weights, {name: torch.zeros(6, in_chans, 4, 4)})
    repeated = weight.repeat(1, math.ceil(in_chans / 3), 1, 1)[:, :in_chans]
    assert rel_f(weights[name], repeated.double() * (3 / in_chans)) <= 1e-7
    assert weights[name].dtype == torch.float32
    assert done == {name: f"3 -> {in_chans} channels (repeated, times 3/{in_chans})"}


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
    fit(source.state_dict(), net)
    for m, old in zip((source, net), before, strict=True):
        assert all(torch.equal(value, old[key]) for key, value in m.state_dict().items())


@pytest.mark.parametrize("wrong", [48, 98, 147 * 49])
def test_a_first_layer_of_no_whole_windows_is_left_to_the_check(wrong: int):
    weights = model("t2t_vit_micro", 3).state_dict()
    weights["tokens_to_token.attention1.norm1.weight"] = torch.ones(wrong)
    with pytest.raises(ValueError, match=r"attention1\.norm1\.weight \(\d+,\) in place of \(49,\)"):
        fit(weights, model("t2t_vit_micro", 1))
