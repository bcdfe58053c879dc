"""MixToken against the authors' code."""

from __future__ import annotations

import pytest
import torch

from t2t_torch.models.mix_token import MixToken
from tests.support.token_labels import token_goldens

GOLDEN = token_goldens()


def golden(name: str) -> torch.Tensor:
    return torch.from_numpy(GOLDEN[name])


def test_tokens_are_exchanged_as_the_authors_do_and_come_back():
    mix = MixToken(*GOLDEN["mixed_box"].tolist())
    mixed = mix(golden("tokens"), (3, 8))
    assert torch.equal(mixed, golden("mixed"))
    assert torch.equal(mix(mixed, (3, 8)), golden("tokens"))
    changed = (GOLDEN["mixed"] != GOLDEN["tokens"]).any(axis=-1).mean()
    assert mix.own_share(24) == pytest.approx(1 - changed)
