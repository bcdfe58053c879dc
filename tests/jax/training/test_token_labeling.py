"""Token labels against the authors' code for the same draws, in float64, and the law of our own draws."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2t_jax.models.mix_token import MixToken
from t2t_jax.training.token_labeling import (
    draw_mix_token,
    rand_bbox,
    token_label_cross_entropy,
    token_targets,
)
from tests.support.golden import rel_f
from tests.support.token_labels import BOX, GRID, NUM_CLASSES, token_goldens

GOLDEN = token_goldens()


pytestmark = pytest.mark.usefixtures("x64")


def targets(scores: Any, classes: Any, crops: Any, **arguments: Any) -> np.ndarray:
    made = jax.jit(lambda *arrays: token_targets(*arrays, **arguments))
    return np.asarray(made(scores, classes.astype(np.int32), np.asarray(crops)))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_targets_are_the_authors(smoothing: float):
    maps = GOLDEN["maps"]
    found = targets(maps[:, 0], maps[:, 1], GOLDEN["crops"], num_classes=NUM_CLASSES, grid=GRID, smoothing=smoothing)
    assert (found.shape, found.dtype) == ((6, 17, NUM_CLASSES), np.float64)
    assert rel_f(found, GOLDEN[f"targets/{smoothing}"]) <= 1e-13
    np.testing.assert_allclose(found.sum(axis=-1), 1 + smoothing / NUM_CLASSES, rtol=1e-12)


def test_a_crop_takes_its_own_part_of_the_map():
    """The cells of the lower left quarter name other classes than all the rest; upstream would look upper right."""
    scores, classes = np.full((1, 1, 8, 8), 9.0), np.zeros((1, 1, 8, 8))
    classes[:, :, 4:, :4] = 1
    found = targets(scores, classes, [[0.5, 1.0, 0.0, 0.5]], num_classes=3, grid=(2, 2))
    np.testing.assert_array_equal(found.argmax(axis=-1), 1)


def test_maps_and_grids_that_are_no_squares():
    scores, classes = np.full((1, 1, 4, 8), 9.0), np.broadcast_to(np.arange(8) // 2, (1, 1, 4, 8))
    found = targets(scores, classes, [[0.0, 1.0, 0.0, 1.0]], num_classes=4, grid=(2, 4))
    np.testing.assert_array_equal(found[0, 1:].argmax(axis=-1).reshape(2, 4), [[0, 1, 2, 3]] * 2)


@pytest.mark.parametrize(("kind", "weight"), list(itertools.product(("none", "box"), (0.5, 1.0))))
def test_loss_is_the_authors(kind: str, weight: float):
    mix = MixToken(*BOX) if kind == "box" else None
    arrays = (jnp.asarray(GOLDEN[name]) for name in ("logits", "token_logits", "targets/0.1"))
    found = jax.jit(lambda *arrays: token_label_cross_entropy(*arrays, mix, dense_weight=weight))(*arrays)
    assert rel_f(np.asarray(found), GOLDEN[f"loss/{kind}/{weight}"]) <= 1e-14


def test_boxes_are_the_authors():
    made = jax.jit(rand_bbox, static_argnums=0)
    for (rows, columns, lam, *centre), expected in zip(GOLDEN["draws"], GOLDEN["boxes"], strict=True):
        box = made((int(rows), int(columns)), lam, tuple(map(int, centre)))
        assert [int(edge) for edge in (box.top, box.bottom, box.left, box.right)] == expected.tolist()


def test_partners_are_found_in_groups():
    tokens = np.arange(4.0).reshape(4, 1, 1)
    mix = MixToken(0, 1, 0, 1, group=2)
    np.testing.assert_array_equal(jax.jit(lambda x, mix: mix(x, (1, 1)))(tokens, mix).ravel(), [1, 0, 3, 2])
    one_hot = np.eye(4)[:, None].repeat(2, axis=1)
    logits = 50 * one_hot[[1, 0, 3, 2], 0]  # of the partners, whose tokens these all are
    assert jax.jit(token_label_cross_entropy)(logits, 50 * one_hot[:, 1:], one_hot, mix) < 1e-6


def test_draws_follow_the_authors_law():
    keys = jax.random.split(jax.random.key(0), 4000)
    mixes = jax.jit(jax.vmap(lambda key: draw_mix_token(key, (20, 10), group=2)))(keys)
    top, bottom, left, right = (np.asarray(edge) for edge in (mixes.top, mixes.bottom, mixes.left, mixes.right))
    assert mixes.group == 2
    assert all((top >= 0) & (top <= bottom) & (bottom <= 20) & (left <= right) & (right <= 10))
    rng = np.random.default_rng(1)
    sides = [
        (np.sqrt(rng.random(40_000))[:, None] * (20, 10)).astype(int) // 2,
        rng.integers((20, 10), size=(40_000, 2)),
    ]
    low, high = np.maximum(sides[1] - sides[0], 0), np.minimum(sides[1] + sides[0], (20, 10))
    areas = (high - low).prod(axis=1)
    assert ((bottom - top) * (right - left)).mean() == pytest.approx(areas.mean(), rel=0.05)
    assert top.mean() == pytest.approx(low[:, 0].mean(), rel=0.05)
    assert right.mean() == pytest.approx(high[:, 1].mean(), rel=0.05)


def test_low_precision_logits_make_no_low_precision_loss():
    logits, token_logits = (
        jax.ShapeDtypeStruct(GOLDEN[name].shape, jnp.bfloat16) for name in ("logits", "token_logits")
    )
    target = jax.ShapeDtypeStruct(GOLDEN["targets/0.1"].shape, jnp.float32)
    assert jax.eval_shape(token_label_cross_entropy, logits, token_logits, target).dtype == jnp.float32
