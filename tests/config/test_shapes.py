"""Arithmetic of sizes: token grids and stochastic depth."""

from __future__ import annotations

import pytest

from t2t_config.shapes import SOFT_SPLITS, drop_path_rates, patch_grid, soft_split_grids, to_pair


def windows(size: int, kernel: int, stride: int, padding: int) -> int:
    """How many windows of a padded line lie wholly inside, by counting them."""
    return sum(start + kernel <= size + 2 * padding for start in range(0, size + 2 * padding, stride))


@pytest.mark.parametrize("size", [3, 5, 16, 31, 32, 33, 100, 224, 225, 384])
def test_soft_split_grids_count_the_windows(size: int):
    expected, side = [], size
    for split in SOFT_SPLITS:
        side = windows(side, *split)
        expected.append(side)
    assert soft_split_grids((size, 224)) == tuple(
        (rows, columns) for rows, columns in zip(expected, (56, 28, 14), strict=True)
    )


def test_soft_split_grids_refuse_what_has_no_window():
    with pytest.raises(ValueError, match="img_size 224x2 is too small"):
        soft_split_grids((224, 2))


def test_patch_grid_drops_the_rest():
    assert patch_grid((224, 239), 16) == (14, 14)
    with pytest.raises(ValueError, match="img_size 15x32 is smaller than one patch of 16"):
        patch_grid((15, 32), 16)


def test_drop_path_rates_grow_linearly():
    assert drop_path_rates(0.3, 4) == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert drop_path_rates(0.3, 1) == [0.0]


def test_to_pair():
    assert to_pair(224) == (224, 224)
    assert to_pair((224, 160)) == (224, 160)
