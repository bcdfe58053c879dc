"""Random erasing against timm's images for timm's draws, and the law of our own draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from t2t_torch.training.random_erasing import ErasingDraws, RandomErasing, erase
from tests.jax.training.test_random_erasing import timms_rectangle
from tests.support.timm_mixing import golden_arrays, golden_input


@pytest.mark.parametrize(("height", "width"), [(12, 16), (20, 6)])
def test_images_are_timms_for_its_draws(height: int, width: int):
    golden = {name: torch.from_numpy(array) for name, array in golden_arrays(f"erasing/{height}x{width}").items()}
    draws = ErasingDraws(*(golden[name] for name in ErasingDraws._fields))
    draws = draws._replace(noise=draws.noise.permute(0, 3, 1, 2))
    before = torch.from_numpy(golden_input((8, height, width, 3))).permute(0, 3, 1, 2)
    after = erase(before, draws)
    assert torch.equal(after, golden["images"].permute(0, 3, 1, 2))
    assert 0 < (after != before).flatten(1).any(dim=1).sum() < 8


def test_no_rectangle_fits_no_change():
    images = torch.zeros(1, 1, 4, 4)
    tries = torch.ones(1, 10)
    draws = ErasingDraws(torch.ones(1, dtype=torch.bool), tries, 0 * tries, torch.zeros(1, 2), torch.ones(1, 1, 4, 4))
    assert torch.equal(erase(images, draws), images)
    tries[0, 9] = 0.25
    assert erase(images, draws)[0, 0].nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_rectangles_follow_timms_law():
    """Mean and spread of place and size over 6,000 images that often need another attempt."""
    height, width, count = 24, 10, 6000
    images = torch.zeros(count, 1, height, width)
    draws = RandomErasing(0.25).draw(np.random.default_rng(0), images)
    assert draws.erase.float().mean() == pytest.approx(0.25, abs=0.02)
    noise = draws.noise[draws.erase]
    assert (float(noise.mean()), float(noise.std())) == (pytest.approx(0, abs=0.01), pytest.approx(1, abs=0.01))
    assert len({row.numpy().tobytes() for row in noise}) == len(noise)
    ones = draws._replace(erase=torch.ones(count, dtype=torch.bool), noise=torch.ones_like(images))
    inside = erase(images, ones)[:, 0].numpy() > 0
    rows, columns = inside.any(axis=2), inside.any(axis=1)
    ours = np.stack([rows.argmax(1), columns.argmax(1), rows.sum(1), columns.sum(1)], axis=1)
    np.testing.assert_array_equal(inside.sum((1, 2)), ours[:, 2] * ours[:, 3])  # one rectangle, no holes
    rng = np.random.default_rng(0)
    theirs = np.array([timms_rectangle(rng, height, width) for _ in range(count)])
    scale = theirs.std(axis=0)
    np.testing.assert_allclose(ours.mean(axis=0) / scale, theirs.mean(axis=0) / scale, atol=0.06)
    np.testing.assert_allclose(ours.std(axis=0) / scale, 1, atol=0.05)


def test_processes_erase_of_their_parts_what_one_would_of_the_batch():
    erasing, images = RandomErasing(0.7), torch.randn(8, 3, 9, 9)
    whole = erasing(images, np.random.default_rng(2))
    parts = [erasing(images[4 * i : 4 * i + 4], np.random.default_rng(2), part=i, parts=2) for i in range(2)]
    assert not torch.equal(whole, images)
    assert torch.equal(torch.cat(parts), whole)


def test_impossible_figures_are_refused():
    for figures, message in (
        ({"probability": 1.5}, "probability"),
        ({"min_area": 0.5}, "the smaller first"),
        ({"min_aspect": 2.0}, "min_aspect"),
    ):
        with pytest.raises(ValueError, match=message):
            RandomErasing(**figures)
