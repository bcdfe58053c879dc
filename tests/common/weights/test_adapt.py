"""Weights adapted to other grids and channels, as PyTorch's bicubic interpolation and timm's `adapt_input_conv` do."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from t2t_common.weights.adapt import adapt, adapt_in_chans, cubic_weights, resize_pos_embed
from tests.support.golden import rel_f

GATE = 1e-13


def bicubic(table: np.ndarray, source: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
    """PyTorch's, of a table without prefix tokens, in float64."""
    image = torch.from_numpy(table).double().reshape(1, *source, -1).permute(0, 3, 1, 2)
    return F.interpolate(image, size=grid, mode="bicubic").permute(0, 2, 3, 1).flatten(1, 2).numpy()


@pytest.mark.parametrize("source", [(14, 14), (5, 7), (1, 3), (2, 2)])
@pytest.mark.parametrize("grid", [(24, 24), (18, 10), (14, 14), (3, 2), (1, 1), (37, 5)])
@pytest.mark.parametrize("prefix", [1, 2])
def test_resize_is_pytorchs_bicubic(source: tuple[int, int], grid: tuple[int, int], prefix: int):
    table = np.random.RandomState(0).standard_normal((1, prefix + source[0] * source[1], 8))
    resized = resize_pos_embed(table, source, grid, num_prefix_tokens=prefix)
    np.testing.assert_array_equal(resized[:, :prefix], table[:, :prefix])
    assert rel_f(resized[:, prefix:], bicubic(table[:, prefix:], source, grid)) <= GATE


@pytest.mark.parametrize(("size", "new_size"), [(5, 4), (7, 14), (14, 3), (5, 18), (1, 4)])
def test_weights_are_those_of_cubic_convolution(size: int, new_size: int):
    """a = -0.75, half-pixel centres, edges repeated (Keys 1981), element by element."""
    a, matrix = -0.75, np.zeros((new_size, size))
    for i in range(new_size):
        centre = (i + 0.5) * size / new_size - 0.5
        for j in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            d = abs(centre - j)
            near = (a + 2) * d**3 - (a + 3) * d**2 + 1
            far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
            matrix[i, min(max(j, 0), size - 1)] += near if d <= 1 else far
    assert rel_f(cubic_weights(size, new_size), matrix) <= GATE


def test_float32_tables_are_resized_in_float64():
    table = np.random.RandomState(0).standard_normal((1, 197, 8)).astype(np.float32)
    resized = resize_pos_embed(table, (14, 14), (24, 24))
    assert resized.dtype == np.float64
    assert rel_f(resized[:, 1:], bicubic(table[:, 1:], (14, 14), (24, 24))) <= GATE


def test_resize_needs_the_right_grid():
    with pytest.raises(ValueError, match=r"\(1, 17, 3\) does not hold 1 \+ 3x5 tokens: check source_grid"):
        resize_pos_embed(np.zeros((1, 17, 3)), (3, 5), (4, 4))


@pytest.mark.parametrize("in_chans", [2, 4, 5, 7])
@pytest.mark.parametrize("name", ["patch_embed.proj.weight", "tokens_to_token.soft_split0.weight"])
def test_convolutions_as_timm_does(in_chans: int, name: str):
    """adapt_input_conv: the channels in turn, times 3 / in_chans."""
    weight = np.random.RandomState(0).standard_normal((6, 3, 4, 4))
    changed, done = adapt_in_chans(lambda _: weight, {name: weight.shape}, {name: (6, in_chans, 4, 4)})
    repeated = np.tile(weight, (1, math.ceil(in_chans / 3), 1, 1))[:, :in_chans]
    assert rel_f(changed[name], repeated * (3 / in_chans)) <= 1e-15
    assert done == {name: f"3 -> {in_chans} channels (repeated, times 3/{in_chans})"}


@pytest.mark.parametrize("fresh", [True, False])
def test_classifiers_for_other_classes_are_left_out_if_fresh_ones_do(fresh: bool):
    shapes = {"head.weight": (5, 4), "head.bias": (5,), "aux_head.weight": (5, 4), "blocks.0.weight": (4, 4)}
    own = {"head.weight": (7, 4), "head.bias": (7,), "blocks.0.weight": (4, 4)}
    adapted = adapt(
        lambda name: np.zeros(shapes[name]), shapes, own, grid=(2, 2), num_prefix_tokens=1, fresh_classifiers=fresh
    )
    heads = ("head.weight", "head.bias")
    assert adapted.left_out == ((*heads, "aux_head.weight") if fresh else ("aux_head.weight",))
    assert adapted.missing == (heads if fresh else ())
    assert adapted.changed == {}
