"""Ports in Linen, Equinox and Haiku: right ones pass, mistakes are caught and located (all of them: `--twins`)."""

from __future__ import annotations

import pytest

from t2t_parity.selftest import TWIN_MISTAKES, TWINS
from t2t_parity.selftest.run import try_mutation, try_unmutated
from t2t_parity.selftest_command import SelftestOptions, selftest

SEED = 4
"""Seeds below are also checked in training mode, which takes longer."""


@pytest.mark.parametrize("pair", TWINS)
def test_a_right_port_passes(pair: str):
    assert try_unmutated(pair, SEED) == (f"{pair}, seed {SEED}", None)


@pytest.mark.parametrize(
    "name",
    [
        "vit in linen: tanh gelu",
        "gpt in equinox: epsilon of a LayerNorm",
        "vit in haiku: positions from one",
        "gpt in haiku: queries and keys exchanged",
        "gpt in linen: dropout at twice the rate",
    ],
)
def test_a_mistake_is_caught_and_located(name: str):
    outcome = try_mutation(next(mistake for mistake in TWIN_MISTAKES if mistake.name == name))
    assert outcome.passed
    assert outcome.module_right
    assert outcome.cause_right in (True, None)


def test_every_library_and_kind_has_every_mistake():
    assert len(TWINS) == 6
    assert len({mistake.name for mistake in TWIN_MISTAKES}) == 42


def test_one_set_of_pairs_at_a_time():
    with pytest.raises(ValueError, match="give one of them"):
        selftest(SelftestOptions(opaque=True, twins=True))
