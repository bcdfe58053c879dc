"""Both frameworks see the same in every kind of model: in float64 the same figures, in float32 the same pictures."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import t2t_jax.visualize
import t2t_torch.visualize
from parity import rel_f
from t2t_common.data.preprocess import Preprocess
from t2t_common.visualize.command import restore
from t2t_common.visualize.inside import position_similarity, rollout
from t2t_common.visualize.sections import draw_image, draw_positions
from t2t_parity.pair import make_pair
from tests.support.families import FAMILIES

GATE = 1e-12


def image(dtype: Any) -> np.ndarray:
    return np.random.RandomState(1).standard_normal((32, 48, 3)).astype(dtype)


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.usefixtures("x64")
def test_the_same_figures(kind: str):
    name, arguments = FAMILIES[kind]
    torch_model, jax_model = make_pair(name, **arguments)
    nnx.update(jax_model, jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), nnx.state(jax_model)))
    ours = t2t_torch.visualize.make_feature_extractor(torch_model.eval().double())(image(np.float64))
    theirs = t2t_jax.visualize.make_feature_extractor(jax_model)(image(np.float64))
    assert (ours.grid, ours.num_prefix_tokens) == (theirs.grid, theirs.num_prefix_tokens)
    for a, b in (
        (ours.attention, theirs.attention),
        (ours.stages, theirs.stages),
        (rollout(ours.attention), rollout(theirs.attention)),
    ):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].dtype == b[key].dtype == np.float64
            assert rel_f(b[key], a[key]) < GATE, key
    assert rel_f(theirs.logits, ours.logits) < GATE
    similar = [position_similarity(inside.positions, inside.grid) for inside in (ours, theirs)]
    assert rel_f(*similar) < GATE


@pytest.mark.parametrize("kind", ["performer", "dense", "distilled"])
def test_the_same_pictures(kind: str):
    """The colour of a pixel differs by one of 255 steps at most, and of few pixels."""
    name, arguments = FAMILIES[kind]
    torch_model, jax_model = make_pair(name, **arguments)
    pixels = image(np.float32)
    seen = restore(pixels, Preprocess((32, 48), 3, (0.5,) * 3, (0.5,) * 3, 1.0, "bicubic"))
    looks = (
        t2t_torch.visualize.make_feature_extractor(torch_model.eval()),
        t2t_jax.visualize.make_feature_extractor(jax_model),
    )
    drawn = [[*draw_image(inside, seen), draw_positions(inside)] for inside in (look(pixels) for look in looks)]
    for ours, theirs in zip(*drawn, strict=True):
        assert (ours.name, ours.text, ours.ends) == (theirs.name, theirs.text, theirs.ends)
        for group, other in zip(ours.groups, theirs.groups, strict=True):
            assert group.heading == other.heading
            for tile, twin in zip(group.tiles, other.tiles, strict=True):
                assert tile.caption == twin.caption
                difference = np.abs(np.asarray(tile.image, int) - np.asarray(twin.image, int))
                assert difference.max() <= 2
                assert difference.any(axis=-1).mean() < 0.02
