"""Position tables for other image sizes."""

from __future__ import annotations

import pytest
import torch

from t2t_common.weights import adapt
from t2t_torch.weights.positions import resize_pos_embed
from tests.support.golden import rel_f


@pytest.mark.parametrize("grid", [(4, 6), (14, 14), (3, 2), (18, 10)])
@pytest.mark.parametrize("prefix", [1, 2])
def test_resize_is_bicubic_and_keeps_the_first_tokens(grid: tuple[int, int], prefix: int):
    """Against cubic convolution in numpy, which tests/common/weights/test_adapt.py holds to its definition."""
    table = torch.randn(1, prefix + 5 * 7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    resized = resize_pos_embed(table, (5, 7), grid, num_prefix_tokens=prefix)
    assert torch.equal(resized[:, :prefix], table[:, :prefix])
    expected = adapt.resize_pos_embed(table.numpy(), (5, 7), grid, num_prefix_tokens=prefix)
    assert rel_f(resized[0, prefix:], expected[0, prefix:]) <= 1e-13


def test_resize_needs_the_right_grid():
    with pytest.raises(ValueError, match=r"\(1, 17, 3\) does not hold 1 \+ 3x5 tokens"):
        resize_pos_embed(torch.zeros(1, 17, 3), (3, 5), (4, 4))


def test_resize_never_computes_below_float32():
    table = torch.randn(1, 17, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    resized = resize_pos_embed(table, (4, 4), (7, 7))
    assert resized.dtype == torch.bfloat16
    assert torch.equal(resized, resize_pos_embed(table.float(), (4, 4), (7, 7)).bfloat16())
