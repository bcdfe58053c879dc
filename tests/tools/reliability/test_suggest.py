"""The campaign of scrambled models: a short form of it, and that a wrong proposal is found."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

import parity
from t2t_common.io import cli
from tools.reliability import suggest


@pytest.fixture(autouse=True)
def broadcasting() -> Iterator[None]:
    """Functions of users add a vector to every row."""
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("name", suggest.CASES)
def test_scrambled_models_get_the_right_rules(name: str):
    case = suggest.CASES[name]()
    found = [suggest.judge(case, seed, flat=flat) for seed, flat in ((0, False), (1, True))]
    outcomes = [outcome for outcome, _ in found]
    assert outcomes[0] == suggest.RIGHT, found[0]
    assert outcomes[1] in (suggest.RIGHT, suggest.AMBIGUOUS), found[1]


def test_a_wrong_proposal_is_found(monkeypatch: pytest.MonkeyPatch):
    case = suggest.CASES["decoder"]()
    proposed = parity.suggest_rules

    def exchanged(*args: Any, **options: Any) -> parity.Rules:
        rules = proposed(*args, **options)
        first, second = (next(r for r in rules.tensors if r.torch.endswith(f"norm{i}.weight")) for i in (1, 2))
        others = [rule for rule in rules.tensors if rule not in (first, second)]
        pair = [dataclasses.replace(first, jax=second.jax), dataclasses.replace(second, jax=first.jax)]
        return dataclasses.replace(rules, tensors=[*others, *pair])

    monkeypatch.setattr(parity, "suggest_rules", exchanged)
    assert suggest.judge(case, 0)[0] == suggest.WRONG


def test_the_result_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    outcomes = {"a": [(suggest.RIGHT, ""), (suggest.AMBIGUOUS, "two")], "b": [(suggest.WRONG, "three")]}
    monkeypatch.setattr(suggest, "campaign", lambda *args, **options: outcomes)
    target = tmp_path / "found.json"
    assert suggest.main(["--json", str(target), "--seeds", "3"]) == cli.FAILED
    written = json.loads(target.read_text())
    assert (written["forms"], written["right"], written["wrong"]) == (3, 1, 1)
    assert "b, seed 0: wrong: three" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no model 'c'"):
        suggest.main(["--only", "c"])
