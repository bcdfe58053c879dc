"""What is drawn of what: names, counts, captions; what a model does not have is left out."""

from __future__ import annotations

import numpy as np
from PIL import Image

from t2t_common.visualize.draw import sheet, tile_width
from t2t_common.visualize.sections import FEATURE_MAPS, draw_image, draw_positions, left_out
from tests.support.pages.made_views import inside

IMAGE = Image.new("RGB", (48, 32), "gray")


def test_every_part_is_drawn():
    rollout, attention, heads, stages = draw_image(inside(), IMAGE)
    assert [s.name for s in (rollout, attention, heads, stages)] == ["rollout", "attention", "heads", "soft_splits"]
    for section in (rollout, attention):
        (group,) = section.groups
        assert group.heading == "class token"
        assert [tile.caption.split("\n")[0] for tile in group.tiles] == ["blocks.0", "blocks.1"]
    assert [(group.heading, len(group.tiles)) for group in heads.groups] == [("blocks.0", 2), ("blocks.1", 2)]
    assert [len(group.tiles) for group in stages.groups] == [8, 8, FEATURE_MAPS]
    assert "8x12 tokens of 8 channels (attention1)" in stages.groups[0].heading
    for section in (rollout, attention, heads, stages):
        for group in section.groups:
            width = tile_width(group.columns)
            assert {tile.image.size for tile in group.tiles} == {(width, round(width * 32 / 48))}


def test_captions_tell_the_shares():
    weights = np.full((1, 7, 7), 0.1)
    weights[0, 0] = [0.4, 0.01, 0.04, 0.05, 0.2, 0.1, 0.2]
    rollout, attention, *_ = draw_image(inside(attention={"blocks.3": weights}), IMAGE)
    assert attention.groups[0].tiles[0].caption == "blocks.3\n1 to 20 %"
    assert rollout.groups[0].tiles[0].caption == "blocks.3\n0.5 to 10 %"


def test_heads_show_where_the_class_token_looks():
    weights = np.full((2, 7, 7), 0.1)
    weights[0, 0, 1 + 2], weights[1, 0, 1 + 3] = 0.4, 0.4  # row 0, column 2; row 1, column 0
    weights[:, 1:, 1 + 1] = 0.9
    _, _, heads, _ = draw_image(inside(attention={"blocks.0": weights}), IMAGE)
    for tile, (row, column) in zip(heads.groups[0].tiles, ((0, 2), (1, 0)), strict=True):
        width, height = tile.image.size
        brightness = np.asarray(tile.image.convert("L"), int)
        token = brightness[row * height // 2 : (row + 1) * height // 2, column * width // 3 : (column + 1) * width // 3]
        assert np.median(token) > 240
        assert (brightness > 100).sum() < 1.1 * token.size


def test_distilled_models_have_maps_of_both_tokens():
    rollout, attention, *_ = draw_image(inside(2), IMAGE)
    for section in (rollout, attention):
        assert [group.heading for group in section.groups] == ["class token", "distillation token"]
        first, second = (np.asarray(group.tiles[0].image) for group in section.groups)
        assert (first != second).any()


def test_what_the_model_does_not_have_is_left_out_and_said():
    bare = inside(stages={})
    assert [section.name for section in draw_image(bare, IMAGE)] == ["rollout", "attention", "heads"]
    assert "no soft splits" in left_out(bare)
    assert "no soft splits" not in left_out(inside())


def test_positions_on_one_scale():
    section = draw_positions(inside())
    assert section.ends[1] == "1.00"
    assert "are drawn" not in section.text
    pixels = np.asarray(section.groups[0].tiles[0].image)
    assert (pixels == [0xFD, 0xE7, 0x25]).all(axis=2).any()  # each position is most like itself
    large = draw_positions(inside(grid=(3, 14)))
    assert "3 of 3 rows are drawn, 10 of 14 columns" in large.text


def test_sheets_use_only_letters_that_pillow_has():
    for section in [*draw_image(inside(2), IMAGE), draw_positions(inside())]:
        words = [section.title, *section.ends, *(group.heading for group in section.groups)]
        words += [tile.caption for group in section.groups for tile in group.tiles]
        assert all(word.isascii() for word in words)
        assert sheet(section, "model").height > 200


def test_a_map_of_one_token_can_be_drawn():
    single = inside(grid=(1, 1))
    assert len(draw_image(single, IMAGE)) == 4
    assert draw_positions(single).ends == ("cosine 1.00", "1.00")
