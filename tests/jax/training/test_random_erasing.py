"""Random erasing against timm's images for timm's draws, and the law of our own draws."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2t_jax.training.random_erasing import ErasingDraws, RandomErasing, erase
from tests.support.timm_mixing import golden_arrays, golden_input


@pytest.mark.parametrize(("height", "width"), [(12, 16), (20, 6)])
def test_images_are_timms_for_its_draws(height: int, width: int):
    golden = golden_arrays(f"erasing/{height}x{width}")
    draws = ErasingDraws(*(jnp.asarray(golden[name]) for name in ErasingDraws._fields))
    before = golden_input((8, height, width, 3))
    np.testing.assert_array_equal(jax.jit(erase)(before, draws), golden["images"])
    assert 0 < np.sum(np.any(golden["images"] != before, axis=(1, 2, 3))) < 8


def test_the_goldens_show_rectangles_that_do_not_fit():
    assert np.any(golden_arrays("erasing/20x6")["area"][:, 1] > 0)  # a second attempt


def test_no_rectangle_fits_no_change():
    images = jnp.zeros((1, 4, 4, 1))
    tries = jnp.full((1, 10), 1.0)
    draws = ErasingDraws(jnp.ones(1, bool), tries, 0 * tries, jnp.zeros((1, 2)), jnp.ones((1, 4, 4, 1)))
    np.testing.assert_array_equal(erase(images, draws), images)
    fits_last = draws._replace(area=tries.at[0, 9].set(0.25))
    np.testing.assert_array_equal(np.where(erase(images, fits_last)[0, ..., 0])[0], [0, 0, 1, 1])


def timms_rectangle(rng: np.random.Generator, height: int, width: int) -> tuple[int, int, int, int]:
    """(top, left, height, width) by timm's loop; zeros without one."""
    for _ in range(10):
        area = rng.uniform(0.02, 1 / 3) * height * width
        aspect = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    return 0, 0, 0, 0


def test_rectangles_follow_timms_law():
    """Mean and spread of place and size over 6,000 images that often need another attempt."""
    height, width, count = 24, 10, 6000
    erasing = RandomErasing(0.25)
    draws = erasing.draw(jax.random.key(0), (count, height, width, 1), jnp.float32)
    assert np.mean(draws.erase) == pytest.approx(0.25, abs=0.02)
    noise = np.asarray(draws.noise)
    assert (noise.mean(), noise.std()) == (pytest.approx(0, abs=0.01), pytest.approx(1, abs=0.01))
    ones = draws._replace(erase=jnp.ones(count, bool), noise=jnp.ones_like(draws.noise))
    inside = np.asarray(jax.jit(erase)(jnp.zeros((count, height, width, 1)), ones))[..., 0] > 0
    rows, columns = inside.any(axis=2), inside.any(axis=1)
    ours = np.stack([rows.argmax(1), columns.argmax(1), rows.sum(1), columns.sum(1)], axis=1)
    np.testing.assert_array_equal(inside.sum((1, 2)), ours[:, 2] * ours[:, 3])  # one rectangle, no holes
    rng = np.random.default_rng(0)
    theirs = np.array([timms_rectangle(rng, height, width) for _ in range(count)])
    for quantile in (0.1, 0.25, 0.5, 0.75, 0.9):
        np.testing.assert_allclose(np.quantile(ours, quantile, axis=0), np.quantile(theirs, quantile, axis=0), atol=1)
    scale = theirs.std(axis=0)
    np.testing.assert_allclose(ours.mean(axis=0) / scale, theirs.mean(axis=0) / scale, atol=0.06)
    np.testing.assert_allclose(ours.std(axis=0) / scale, 1, atol=0.05)


def test_impossible_figures_are_refused():
    for figures, message in (
        ({"probability": 1.5}, "probability"),
        ({"min_area": 0.5}, "the smaller first"),
        ({"min_aspect": 2.0}, "min_aspect"),
    ):
        with pytest.raises(ValueError, match=message):
            RandomErasing(**figures)
