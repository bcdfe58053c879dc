"""Token labels against the authors' code for the same draws, in float64, and the law of our own draws."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from t2t_common.run.reporter import Reporter
from t2t_config import Recipe
from t2t_torch.models.layers import DropPath
from t2t_torch.models.mix_token import MixToken
from t2t_torch.train import train
from t2t_torch.training.from_recipe import build_model, build_step
from t2t_torch.training.step import MIX_TOKEN
from t2t_torch.training.token_labeling import (
    draw_mix_token,
    rand_bbox,
    token_label_cross_entropy,
    token_targets,
)
from tests.support.golden import rel_f
from tests.support.token_labels import BOX, GRID, LABELLED, NUM_CLASSES, token_goldens, write_labelled_folder
from tests.torch.test_train import ctrl_c, interrupt, metrics

GOLDEN = token_goldens()


def golden(name: str) -> torch.Tensor:
    return torch.from_numpy(GOLDEN[name])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_targets_are_the_authors(smoothing: float):
    maps = golden("maps")
    found = token_targets(
        maps[:, 0], maps[:, 1], golden("crops"), num_classes=NUM_CLASSES, grid=GRID, smoothing=smoothing
    )
    assert (found.shape, found.dtype) == ((6, 17, NUM_CLASSES), torch.float64)
    assert rel_f(found.numpy(), GOLDEN[f"targets/{smoothing}"]) <= 1e-13


def test_a_crop_takes_its_own_part_of_the_map():
    """The cells of the lower left quarter name other classes than all the rest; upstream would look upper right."""
    scores, classes = torch.full((1, 1, 8, 8), 9.0), torch.zeros((1, 1, 8, 8), dtype=torch.int64)
    classes[:, :, 4:, :4] = 1
    found = token_targets(scores, classes, torch.tensor([[0.5, 1.0, 0.0, 0.5]]), num_classes=3, grid=(2, 2))
    assert (found.argmax(dim=-1) == 1).all()


def test_maps_and_grids_that_are_no_squares():
    scores, classes = torch.full((1, 1, 4, 8), 9.0), (torch.arange(8) // 2).expand(1, 1, 4, 8)
    found = token_targets(scores, classes, torch.tensor([[0.0, 1.0, 0.0, 1.0]]), num_classes=4, grid=(2, 4))
    assert found[0, 1:].argmax(dim=-1).view(2, 4).tolist() == [[0, 1, 2, 3]] * 2


@pytest.mark.parametrize(("kind", "weight"), list(itertools.product(("none", "box"), (0.5, 1.0))))
def test_loss_is_the_authors(kind: str, weight: float):
    mix = MixToken(*BOX) if kind == "box" else None
    arrays = (golden(name) for name in ("logits", "token_logits", "targets/0.1"))
    found = token_label_cross_entropy(*arrays, mix, dense_weight=weight)
    assert rel_f(found.numpy(), GOLDEN[f"loss/{kind}/{weight}"]) <= 1e-14


def test_boxes_are_the_authors():
    for (rows, columns, lam, *centre), expected in zip(GOLDEN["draws"], GOLDEN["boxes"], strict=True):
        box = rand_bbox((int(rows), int(columns)), lam, (int(centre[0]), int(centre[1])))
        assert [box.top, box.bottom, box.left, box.right] == expected.tolist()


def test_partners_are_found_in_groups():
    mix = MixToken(0, 1, 0, 1, group=2)
    assert mix(torch.arange(4.0).view(4, 1, 1), (1, 1)).flatten().tolist() == [1, 0, 3, 2]
    one_hot = torch.eye(4)[:, None].expand(4, 2, 4)
    logits = 50 * one_hot[[1, 0, 3, 2], 0]  # of the partners, whose tokens these all are
    assert token_label_cross_entropy(logits, 50 * one_hot[:, 1:], one_hot, mix) < 1e-6


def test_draws_are_decided_by_the_generator_and_stay_in_the_grid():
    boxes = [draw_mix_token(np.random.default_rng((7, step)), (20, 10), group=2) for step in range(500)]
    assert boxes[3] == draw_mix_token(np.random.default_rng((7, 3)), (20, 10), group=2) != boxes[4]
    assert all(0 <= box.top <= box.bottom <= 20 and 0 <= box.left <= box.right <= 10 for box in boxes)
    assert (max(box.bottom for box in boxes), min(box.left for box in boxes)) == (20, 0)
    assert 0.25 < np.mean([1 - box.own_share(200) for box in boxes]) < 0.4  # half, less what the borders take


def test_low_precision_logits_make_no_low_precision_loss():
    arrays = [golden(name).float() for name in ("logits", "token_logits", "targets/0.1")]
    assert token_label_cross_entropy(arrays[0].bfloat16(), arrays[1].bfloat16(), arrays[2]).dtype == torch.float32


# ---- steps and runs ----


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    data, labels = write_labelled_folder(tmp_path_factory.mktemp("labelled"))
    return dataclasses.replace(LABELLED, data=str(data), token_labels=str(labels), epochs=12, eval_every=12)


def batch() -> dict[str, torch.Tensor]:
    draws = np.random.default_rng(0)
    return {
        "image": torch.from_numpy(draws.standard_normal((8, 1, 64, 64), np.float32)),
        "label": torch.zeros(8, dtype=torch.int32),
        "label_scores": torch.from_numpy(3 * draws.standard_normal((8, 2, 6, 6), np.float32)),
        "label_classes": torch.from_numpy(draws.integers(0, 4, (8, 2, 6, 6), np.int32)),
        "crop": torch.tensor([[0.1, 0.7, 0.2, 1.0]]).expand(8, 4),
    }


def losses(steps: int, **changes: object) -> list[float]:
    """Of steps that change nothing, by the same weights and batch, without dropout and erasing."""
    still = {"re_prob": 0.0, "drop_path_rate": 0.0, "lr": 0.0, "min_lr": 0.0, "weight_decay": 0.0}
    recipe = dataclasses.replace(LABELLED, **{**still, **changes})
    model = build_model(recipe)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    state, step = build_step(recipe, model, steps_per_epoch=100)
    return [float(step(state, batch())["loss"]) for _ in range(steps)]


def test_a_steps_loss_is_that_of_its_parts():
    """With the box that (seed, step) decides."""
    model = build_model(LABELLED).train()
    for module in model.modules():
        if isinstance(module, (torch.nn.Dropout, DropPath)):
            module.eval()
    given, expected = batch(), []
    for number in range(5):
        mix = draw_mix_token(np.random.default_rng((0, number, MIX_TOKEN, 0)), (4, 4), group=2)
        maps = (given[name] for name in ("label_scores", "label_classes", "crop"))
        targets = token_targets(*maps, num_classes=4, grid=(4, 4), smoothing=0.1)
        outputs = model(given["image"], mix)
        expected.append(token_label_cross_entropy(*outputs, targets, mix, dense_weight=0.7).item())
    found = losses(5, dense_weight=0.7)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert len(set(found)) > 1  # boxes, and none


def test_parts_of_a_batch_are_the_whole_batch_and_draw_for_themselves():
    whole = losses(2, mix_token=0.0)
    np.testing.assert_allclose(losses(2, grad_accum_steps=4, mix_token=0.0), whole, rtol=1e-6)
    assert whole[0] == pytest.approx(whole[1], rel=1e-6)
    assert len(set(losses(4, grad_accum_steps=4))) == 4


def test_a_run_learns_and_goes_on_as_if_it_had_never_stopped(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Though its maps have moved meanwhile."""
    recipe = dataclasses.replace(recipe, auto_augment=None)
    train(recipe, tmp_path / "whole")
    found = [line["loss"] for line in metrics(tmp_path / "whole") if "loss" in line]
    assert np.mean(found[-4:]) < 0.9 * np.mean(found[:4])
    with monkeypatch.context() as patch:
        patch.setattr(Reporter, "step", interrupt(10, ctrl_c))
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / "parts")
    shutil.copytree(recipe.token_labels or "", tmp_path / "moved")
    train(dataclasses.replace(recipe, token_labels=str(tmp_path / "moved")), tmp_path / "parts")
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")


def test_bfloat16_and_rematerialisation_go_with_it(recipe: Recipe):
    kept, again, low = (losses(1, **changes)[0] for changes in ({}, {"remat": True}, {"dtype": "bfloat16"}))
    assert kept == again
    assert low == pytest.approx(kept, rel=0.02)
    assert low != kept
