"""MixToken against the authors' code."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from t2t_jax.models.mix_token import MixToken
from tests.support.token_labels import token_goldens

GOLDEN = token_goldens()

pytestmark = pytest.mark.usefixtures("x64")


def test_tokens_are_exchanged_as_the_authors_do_and_come_back():
    mix = MixToken(*GOLDEN["mixed_box"].tolist())
    mixed = jax.jit(lambda tokens, mix: mix(tokens, (3, 8)))(GOLDEN["tokens"], mix)
    np.testing.assert_array_equal(mixed, GOLDEN["mixed"])
    np.testing.assert_array_equal(jax.jit(lambda tokens: mix(tokens, (3, 8)))(mixed), GOLDEN["tokens"])
    changed = (GOLDEN["mixed"] != GOLDEN["tokens"]).any(axis=-1).mean()
    assert mix.own_share(24) == pytest.approx(1 - changed)
