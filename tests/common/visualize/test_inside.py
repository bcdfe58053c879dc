"""The figures that are drawn: rollout, similarity of positions, the choice of channels."""

from __future__ import annotations

import numpy as np
import pytest

from t2t_common.visualize.inside import liveliest_channels, position_similarity, rollout, stage_grids
from tests.support.pages.made_views import inside


class Model:
    """What `stage_grids` asks of a model."""

    def __init__(self, tokens_type: str) -> None:
        self.tokens_to_token = self
        self.tokens_type, self.grids = tokens_type, ((8, 12), (4, 6), (2, 3))


def test_the_image_is_what_follows_the_prefix_tokens():
    for prefix, names in ((1, ("class token",)), (2, ("class token", "distillation token"))):
        made = inside(prefix)
        assert made.prefix_tokens == names
        weights = np.arange(2 * (prefix + 6)).reshape(2, -1)
        assert made.on_grid(weights)[1].tolist() == (weights[1, prefix:].reshape(2, 3)).tolist()


@pytest.mark.parametrize("name", ["attention", "stages", "positions", "logits"])
def test_what_is_not_finite_is_found(name: str):
    assert inside().is_finite
    value = getattr(inside(), name)
    broken = {key: array.copy() for key, array in value.items()} if isinstance(value, dict) else value.copy()
    last = list(broken.values())[-1] if isinstance(broken, dict) else broken
    last.flat[-1] = np.nan
    assert not inside(**{name: broken}).is_finite


def test_layers_after_the_soft_splits():
    grids = ((8, 12), (4, 6), (2, 3))
    for kind, names in (
        ("performer", ("attention1", "attention2", "project")),
        ("transformer", ("attention1", "attention2", "project")),
        ("convolution", ("soft_split0", "soft_split1", "project")),
    ):
        assert stage_grids(Model(kind)) == dict(zip(names, grids, strict=True))
    assert stage_grids(object()) == {}


def test_rollout_by_hand():
    """Two tokens: block 0 looks at the other one only, block 1 at the first only."""
    first, second = np.array([[[0.0, 1.0], [1.0, 0.0]]]), np.array([[[1.0, 0.0], [1.0, 0.0]]])
    found = rollout({"blocks.0": first, "blocks.2": second})
    assert list(found) == ["blocks.0", "blocks.2"]
    assert found["blocks.0"].tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert found["blocks.2"].tolist() == [[0.5, 0.5], [0.5, 0.5]]
    uneven = rollout({"a": second, "b": first})["b"]  # the product goes from the last block to the first
    assert uneven.tolist() == [[0.75, 0.25], [0.75, 0.25]]


def test_rollout_is_a_distribution_over_the_first_tokens_with_heads_in_the_mean():
    attention = inside().attention
    last = rollout(attention)["blocks.1"]
    assert last.dtype == np.float64
    np.testing.assert_allclose(last.sum(axis=1), 1, rtol=1e-6)
    steps = [(weights.astype(np.float64).mean(axis=0) + np.eye(7)) / 2 for weights in attention.values()]
    np.testing.assert_allclose(last, steps[1] @ steps[0], rtol=1e-12)
    same = {name: weights[::-1] for name, weights in attention.items()}
    np.testing.assert_allclose(rollout(same)["blocks.1"], last, rtol=1e-12)


def test_similarity_is_the_cosine_of_the_images_positions():
    prefix, image = np.full((1, 2), 9.0), np.array([[1.0, 0], [0, 2], [-3, 0], [4, 4], [0, 0], [1, 0]])
    found = position_similarity(np.concatenate([prefix, image]), (2, 3))
    assert found.shape == (2, 3, 2, 3)
    np.testing.assert_allclose(found[0, 0], [[1, 0, -1], [np.sqrt(0.5), 0, 1]], atol=1e-15)
    assert found[1, 1].tolist() == np.zeros((2, 3)).tolist()  # a position without length is like none


def test_the_channels_that_vary_most_in_their_order():
    tokens = np.random.RandomState(0).standard_normal((4, 5, 6)) * [1, 9, 0, 5, 7, 1]
    assert liveliest_channels(tokens + 100, 3).tolist() == [1, 3, 4]
    assert liveliest_channels(tokens, 99).tolist() == [0, 1, 2, 3, 4, 5]
