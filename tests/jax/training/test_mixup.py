"""Mixup and cutmix against timm's images and targets for timm's draws, and the law of our own draws."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2t_jax.training.mixup import Mixup, MixupDraws, cutmix_bbox_and_lam, mixup_target
from tests.support.timm_mixing import golden_arrays, golden_input

MODES = ("batch", "pair", "elem")
ALPHAS = {"mixup": (0.8, 0.0), "cutmix": (0.0, 1.0), "both": (0.8, 1.0)}
SHAPE, CLASSES = (6, 7, 6, 3), 5
LABELS = np.arange(6) % CLASSES


@pytest.mark.parametrize(("mode", "kind", "seed"), list(itertools.product(MODES, ALPHAS, range(3))))
def test_images_and_targets_are_timms_for_its_draws(mode: str, kind: str, seed: int):
    golden = golden_arrays(f"{mode}/{kind}/{seed}")
    mixup = Mixup(*ALPHAS[kind], mode=mode, label_smoothing=0.1, num_classes=CLASSES)
    draws = MixupDraws(*(jnp.asarray(golden[name]) for name in MixupDraws._fields))
    before = golden_input(SHAPE)
    images, targets = jax.jit(mixup.apply)(before, LABELS, draws)
    assert images.dtype == targets.dtype == jnp.float32
    np.testing.assert_allclose(images, golden["images"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(targets, golden["targets"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.sum(targets, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("mode", ["pair", "elem"])
def test_groups_are_mixed_as_batches_of_their_own(mode: str):
    """Two of timm's batches as the two groups of one."""
    goldens = [golden_arrays(f"{mode}/both/{seed}") for seed in (0, 1)]
    mixup = Mixup(*ALPHAS["both"], mode=mode, label_smoothing=0.1, num_classes=CLASSES, group=6)
    draws = MixupDraws(*(jnp.concatenate([golden[name] for golden in goldens]) for name in MixupDraws._fields))
    assert jax.tree.map(jnp.shape, draws) == jax.tree.map(jnp.shape, mixup.draw(jax.random.key(0), (12, *SHAPE[1:])))
    before = np.concatenate([golden_input(SHAPE)] * 2)
    images, targets = jax.jit(mixup.apply)(before, np.concatenate([LABELS] * 2), draws)
    for found, name in ((images, "images"), (targets, "targets")):
        expected = np.concatenate([golden[name] for golden in goldens])
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_groups_share_the_draw_of_a_batch():
    mixup = Mixup(0.0, 1.0, num_classes=CLASSES, group=2)
    before = np.arange(4 * 8 * 8, dtype=np.float32).reshape(4, 8, 8, 1)
    after = np.asarray(jax.jit(mixup)(before, LABELS[:4], jax.random.key(1))[0])
    moved = after != before
    assert moved.any()
    np.testing.assert_array_equal(moved, np.broadcast_to(moved[:1], moved.shape))
    np.testing.assert_array_equal(after, np.where(moved, before[[1, 0, 3, 2]], before))


def test_the_goldens_show_every_case():
    goldens = [golden_arrays(f"{mode}/both/{seed}") for mode in MODES for seed in range(3)]
    kinds = {(bool(cut), float(lam) == 1) for g in goldens for cut, lam in zip(g["use_cutmix"], g["lam"], strict=True)}
    assert {(True, False), (False, False)} <= kinds
    assert any(untouched for _, untouched in kinds)


def test_pairs_exchange_the_same_box():
    mixup = Mixup(0.0, 1.0, mode="pair", num_classes=CLASSES)
    before = golden_input(SHAPE)
    after, _ = jax.jit(mixup)(before, LABELS, jax.random.key(3))
    moved = np.any(np.asarray(after) != before, axis=-1)
    assert moved.any()
    np.testing.assert_array_equal(moved, moved[::-1])
    np.testing.assert_array_equal(after, np.where(moved[..., None], before[::-1], before))


def test_a_clipped_box_leaves_more_of_the_image():
    lam = jnp.full(2, 0.75, jnp.float32)
    (top, bottom, left, right), left_over = cutmix_bbox_and_lam((8, 12), lam, jnp.array([[4, 6], [0, 11]]))
    assert [list(map(int, edge)) for edge in (top, bottom, left, right)] == [[2, 0], [6, 2], [3, 8], [9, 12]]
    np.testing.assert_allclose(left_over, [1 - 24 / 96, 1 - 8 / 96], rtol=1e-7)


def test_targets_that_are_soft_already_are_mixed_and_no_more():
    soft = np.eye(3, dtype=np.float32)[:2]
    mixed = mixup_target(soft, 3, jnp.array([0.75, 1.0], jnp.float32), smoothing=0.1)
    np.testing.assert_allclose(mixed, [[0.75, 0.25, 0], [0, 1, 0]])


@pytest.mark.parametrize("mode", MODES)
def test_draws_follow_timms_law(mode: str):
    mixup = Mixup(0.8, 1.0, prob=0.9, switch_prob=0.3, mode=mode)
    shape = (20, 7, 11, 3)
    draw = jax.jit(jax.vmap(lambda key: mixup.draw(key, shape)))
    drawn = MixupDraws(*map(np.asarray, draw(jax.random.split(jax.random.key(0), 4000 if mode == "batch" else 400))))
    assert drawn.lam.shape[1] == {"batch": 1, "pair": 10, "elem": 20}[mode]
    lam, cut, centre = drawn.lam.ravel(), drawn.use_cutmix.ravel(), drawn.centre.reshape(-1, 2)
    assert np.mean(lam == 1) == pytest.approx(0.1, abs=0.02)
    assert np.mean(cut) == pytest.approx(0.3, abs=0.03)
    active = lam != 1
    for chosen, alpha in ((cut, 1.0), (~cut, 0.8)):
        shares = lam[active & chosen]
        assert shares.mean() == pytest.approx(0.5, abs=0.03)
        assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), abs=0.008)
    for axis, size in enumerate((7, 11)):
        np.testing.assert_allclose(np.bincount(centre[:, axis], minlength=size) / len(centre), 1 / size, atol=0.025)


def test_one_of_both_alone_needs_no_coin():
    mixup, cutmix = (
        jax.jit(Mixup(*alphas, mode="elem").draw, static_argnums=1)(jax.random.key(0), (64, 4, 4, 1))
        for alphas in (ALPHAS["mixup"], ALPHAS["cutmix"])
    )
    assert not mixup.use_cutmix.any()
    assert cutmix.use_cutmix.all()
    assert np.isfinite(cutmix.lam).all()


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
        Mixup().draw(jax.random.key(0), (7, 4, 4, 1))
    with pytest.raises(ValueError, match="group 4 does not divide a batch of 6"):
        Mixup(group=4).draw(jax.random.key(0), (6, 4, 4, 1))
