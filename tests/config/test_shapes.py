"""Arithmetic of sizes: token grids and stochastic depth."""

from __future__ import annotations

import pytest

from t2t_config.shapes import (
    SOFT_SPLITS,
    drop_path_rates,
    patch_grid,
    saved_grid,
    sizes_of,
    soft_split_grids,
    to_pair,
    token_grid,
)
from t2t_torch import create_model


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


def test_token_grid_is_what_the_models_have():
    for img_size in (224, (37, 90)):
        assert token_grid(img_size) == create_model("t2t_vit_micro", img_size=img_size).grid_size
        assert token_grid(img_size, 16) == create_model("deit_tiny_patch16_224", depth=1, img_size=img_size).grid_size


def test_saved_grid_believes_only_what_agrees():
    assert saved_grid((288, 160), 18 * 10) == saved_grid([288, 160], 18 * 10) == (18, 10)
    assert saved_grid(224, 196, 16) == (14, 14)
    for img_size in (224, (288, 161, 3), (288, 176), "288", None, 1):
        assert saved_grid(img_size, 18 * 10) is None


SIZES = {"img_size": 48, "in_chans": 2, "num_classes": 7}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("t2t_vit_micro", {}),
        ("t2t_vit_micro", {"tokens_type": "transformer", "aux_head": True}),
        ("t2t_vit_micro", {"tokens_type": "convolution"}),
        ("deit_tiny_distilled_patch16_224", {"depth": 1}),
        ("t2t_vit_micro", {"num_classes": 0}),
    ],
)
def test_sizes_of_a_model_by_its_shapes(name: str, arguments: dict[str, object]):
    state = create_model(name, **{**SIZES, **arguments}).state_dict()
    expected = {**SIZES, **{key: arguments[key] for key in ("aux_head", "num_classes") if key in arguments}}
    assert sizes_of({key: value.shape for key, value in state.items()}) == expected


def test_sizes_of_what_is_not_square_leave_the_image_open():
    state = create_model("t2t_vit_micro", img_size=(32, 48)).state_dict()
    assert "img_size" not in sizes_of({key: value.shape for key, value in state.items()})


@pytest.mark.parametrize(
    "name", ["head.weight", "pos_embed", "patch_embed.proj.weight", "tokens_to_token.attention1.norm1.weight"]
)
@pytest.mark.parametrize("shape", [(), (0,), (1, 0), (1, 0, 0), (2,) * 6])
def test_shapes_of_no_model_tell_nothing(name: str, shape: tuple[int, ...]):
    assert sizes_of({name: shape, "dist_token": ()}).keys() <= {"num_classes", "in_chans"}


def test_a_saved_size_that_is_no_number():
    for img_size in (float("inf"), "x", None, [1, 2, 3]):
        assert saved_grid(img_size, 4) is None
