"""Mixup and cutmix against timm's images and targets for timm's draws, and the law of our own draws."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from t2t_torch.training.mixup import Mixup, MixupDraws, cutmix_bbox_and_lam, mixup_target
from tests.support.timm_mixing import golden_arrays, golden_input

MODES = ("batch", "pair", "elem")
ALPHAS = {"mixup": (0.8, 0.0), "cutmix": (0.0, 1.0), "both": (0.8, 1.0)}
SHAPE, CLASSES = (6, 7, 6, 3), 5
LABELS = torch.arange(6) % CLASSES


def channels_first(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def timms_draws(golden: dict[str, np.ndarray]) -> MixupDraws:
    return MixupDraws(*(torch.from_numpy(golden[name]) for name in MixupDraws._fields))


@pytest.mark.parametrize(("mode", "kind", "seed"), list(itertools.product(MODES, ALPHAS, range(3))))
def test_images_and_targets_are_timms_for_its_draws(mode: str, kind: str, seed: int):
    golden = golden_arrays(f"{mode}/{kind}/{seed}")
    mixup = Mixup(*ALPHAS[kind], mode=mode, label_smoothing=0.1, num_classes=CLASSES)
    images, targets = mixup.apply(channels_first(golden_input(SHAPE)), LABELS, timms_draws(golden))
    assert images.dtype == targets.dtype == torch.float32
    np.testing.assert_allclose(images, channels_first(golden["images"]), rtol=0, atol=1e-6)
    np.testing.assert_allclose(targets, golden["targets"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["pair", "elem"])
def test_groups_are_mixed_as_batches_of_their_own(mode: str):
    """Two of timm's batches as the two groups of one."""
    goldens = [golden_arrays(f"{mode}/both/{seed}") for seed in (0, 1)]
    mixup = Mixup(*ALPHAS["both"], mode=mode, label_smoothing=0.1, num_classes=CLASSES, group=6)
    draws = MixupDraws(*map(torch.cat, zip(*map(timms_draws, goldens), strict=True)))
    before = torch.cat([channels_first(golden_input(SHAPE))] * 2)
    images, targets = mixup.apply(before, torch.cat([LABELS] * 2), draws)
    expected = torch.cat([channels_first(golden["images"]) for golden in goldens])
    np.testing.assert_allclose(images, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(targets, np.concatenate([g["targets"] for g in goldens]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_processes_mix_their_parts_as_one_would_mix_the_batch(mode: str):
    mixup = Mixup(0.8, 1.0, mode=mode, num_classes=CLASSES, group=2)
    images, labels = torch.randn(8, 3, 9, 9), torch.arange(8) % CLASSES
    whole = mixup(images, labels, np.random.default_rng(3))
    parts = [
        mixup(images[4 * i : 4 * i + 4], labels[4 * i : 4 * i + 4], np.random.default_rng(3), part=i, parts=2)
        for i in range(2)
    ]
    assert not torch.equal(whole[0], images)
    for joined, expected in zip(zip(*parts, strict=True), whole, strict=True):
        torch.testing.assert_close(torch.cat(joined), expected, rtol=0, atol=0)


def test_a_clipped_box_leaves_more_of_the_image():
    lam = torch.full((2,), 0.75)
    (top, bottom, left, right), left_over = cutmix_bbox_and_lam((8, 12), lam, torch.tensor([[4, 6], [0, 11]]))
    assert [edge.tolist() for edge in (top, bottom, left, right)] == [[2, 0], [6, 2], [3, 8], [9, 12]]
    np.testing.assert_allclose(left_over, [1 - 24 / 96, 1 - 8 / 96], rtol=1e-7)


def test_targets_that_are_soft_already_are_mixed_and_no_more():
    mixed = mixup_target(torch.eye(3)[:2], 3, torch.tensor([0.75, 1.0]), smoothing=0.1)
    np.testing.assert_allclose(mixed, [[0.75, 0.25, 0], [0, 1, 0]])


@pytest.mark.parametrize("mode", MODES)
def test_draws_follow_timms_law(mode: str):
    mixup = Mixup(0.8, 1.0, prob=0.9, switch_prob=0.3, mode=mode)
    rng = np.random.default_rng(0)
    drawn = [mixup.draw(rng, 20, (7, 11)) for _ in range(4000 if mode == "batch" else 400)]
    assert len(drawn[0].lam) == {"batch": 1, "pair": 10, "elem": 20}[mode]
    lam, cut, centre = (torch.cat(draws).numpy() for draws in zip(*drawn, strict=True))
    assert np.mean(lam == 1) == pytest.approx(0.1, abs=0.02)
    assert np.mean(cut) == pytest.approx(0.3, abs=0.03)
    for chosen, alpha in ((cut, 1.0), (~cut, 0.8)):
        shares = lam[(lam != 1) & chosen]
        assert shares.mean() == pytest.approx(0.5, abs=0.03)
        assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), abs=0.008)
    for axis, size in enumerate((7, 11)):
        np.testing.assert_allclose(np.bincount(centre[:, axis], minlength=size) / len(centre), 1 / size, atol=0.025)


def test_one_of_both_alone_needs_no_coin():
    rng = np.random.default_rng(0)
    mixup, cutmix = (Mixup(*ALPHAS[kind], mode="elem").draw(rng, 64, (4, 4)) for kind in ("mixup", "cutmix"))
    assert not mixup.use_cutmix.any()
    assert cutmix.use_cutmix.all()
    assert torch.isfinite(cutmix.lam).all()


def test_impossible_figures_are_refused():
    for figures, message in (
        ({"mixup_alpha": 0.0}, "one must be positive"),
        ({"cutmix_alpha": -1.0}, "must not be negative"),
        ({"prob": 1.5}, "prob"),
        ({"group": 3}, "group must be even and positive, got 3"),
        ({"mode": "half"}, "'half' is not one of batch, pair, elem"),
    ):
        with pytest.raises(ValueError, match=message):
            Mixup(**figures)
    with pytest.raises(ValueError, match="7 images are an odd number"):
        Mixup().draw(np.random.default_rng(0), 7, (4, 4))
    with pytest.raises(ValueError, match="group 4 does not divide a batch of 6"):
        Mixup(group=4).draw(np.random.default_rng(0), 6, (4, 4))
