"""The self-test holds, and a checker that is weakened does not pass it."""

from __future__ import annotations

import dataclasses
import importlib
import io
import json
import math
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import parity.judge
from parity import Gates
from parity.selftest import MUTATIONS, Outcome, Selftest, run, table, verdict
from parity.selftest.judge import judge
from parity.selftest.mutation import GROUPS, Mutation
from parity.selftest.pairs import FAMILIES, PAIRS, fresh, make

CHECK = importlib.import_module("parity.check")  # `parity.check` is the function
AT_LEAST = {"forward": 24, "gradient": 5, "optimiser": 5, "schedule": 2, "conversion": 5, "data": 3, "train": 20}


def chosen(*names: str) -> list[Any]:
    found = [mutation for mutation in MUTATIONS if mutation.name in names]
    assert len(found) == len(names)
    return found


SOME = (
    "BatchNorm eps 1e-3",
    "padding SAME",
    "straight through ReLU",
    "kernel rotated",
    "bicubic with a = -0.5",
    "one epoch ahead",
    "clipping without 1e-6",
)


@pytest.fixture(scope="module")
def outcome() -> Selftest:
    return run(chosen(*SOME), seeds=1, families=("convolution",))


def test_there_are_enough_mutations() -> None:
    groups = Counter(mutation.group for mutation in MUTATIONS)
    assert set(groups) == set(GROUPS)
    assert all(groups[group] >= least for group, least in AT_LEAST.items())
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) >= 40
    families = {mutation.pair for mutation in MUTATIONS if isinstance(mutation, Mutation)}
    assert families >= set(FAMILIES)


def test_it_holds(outcome: Selftest) -> None:
    assert outcome.passed, outcome
    assert [o.mutation for o in outcome.outcomes] == [m.name for m in MUTATIONS if m.name in SOME]
    assert outcome.correct_runs == 3
    assert outcome.causes_named == 1


def test_tables_and_json_tell_it(outcome: Selftest) -> None:
    stream = io.StringIO()
    Console(file=stream, width=200).print(table(outcome))
    text = stream.getvalue()
    assert all(name in text for name in SOME)
    assert verdict(outcome).startswith("HOLDS: 7 of 7 mutations caught")
    assert "WRONG" not in text
    payload = json.loads(outcome.to_json())
    assert payload["passed"] is True
    assert [o["mutation"] for o in payload["outcomes"]] == [o.mutation for o in outcome.outcomes]


def test_processes_share_the_work() -> None:
    names = ("one epoch ahead", "twice the rate")
    shared = run(chosen(*names), seeds=0, workers=2)
    assert shared.passed
    assert [outcome.mutation for outcome in shared.outcomes] == list(names)


@pytest.mark.parametrize("name", PAIRS)
def test_unmutated_pairs_pass(name: str) -> None:
    report = judge(*make(name, seed=7))
    assert report.passed, report.failures[:3]
    assert report.causes == ()


def test_mutations_leave_no_trace() -> None:
    softmax, concatenate = jax.nn.softmax, jnp.concatenate
    run(chosen("softmax over the queries", "distillation token first"), seeds=0)
    assert jax.nn.softmax is softmax
    assert jnp.concatenate is concatenate
    assert judge(*fresh("distilled")).passed


# ---- what must fail ----

WEAK = ("BatchNorm eps 1e-3", "groups interleaved")


def fails(*names: str, **options: Any) -> bool:
    return not run(chosen(*names), seeds=0, **options).passed


def test_the_weakened_checkers_below_pass_when_they_are_not_weakened() -> None:
    assert not fails(*WEAK)


def test_looser_gates_fail() -> None:
    assert fails("performer eps 1e-6", gates=Gates(f64=1e-7, f64_gradient=1e-6))


def test_a_signed_mean_for_the_norm_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def signed_mean(value: np.ndarray, reference: np.ndarray) -> float:
        return abs(float(np.mean(value)) - float(np.mean(reference)))

    monkeypatch.setattr(parity.judge, "rel_f", signed_mean)
    assert fails("images in another order", "upside down")


def test_dropping_the_forced_rows_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    original = CHECK.layer_rows
    monkeypatch.setattr(
        CHECK,
        "layer_rows",
        lambda pairs, references, calls, mode, *rest: (
            [] if mode == "forced" else original(pairs, references, calls, mode, *rest)
        ),
    )
    assert fails(*WEAK)


def test_ignoring_a_layer_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    original = CHECK.layer_rows
    monkeypatch.setattr(
        CHECK,
        "layer_rows",
        lambda pairs, *rest: [row for row in original(pairs, *rest) if not row.name.startswith("norm1")],
    )
    assert fails(*WEAK)


def test_never_failing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity.judge, "rel_f", lambda value, reference: 0.0)
    assert fails(*WEAK)


def test_always_failing_is_a_false_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity.judge, "rel_f", lambda value, reference: 1.0)
    result = run((), seeds=1, families=("convolution",))
    assert len(result.false_alarms) == 1
    assert not result.passed


def _outcome(**changes: Any) -> Outcome:
    right = Outcome("a", "forward", True, 1e9, "m", True, "c", True, 0.1)
    return dataclasses.replace(right, **changes)


def test_each_shortcoming_fails() -> None:
    def result(*outcomes: Outcome, alarms: tuple[str, ...] = (), runs: int = 5) -> bool:
        return Selftest(outcomes, alarms, runs, 1.0).passed

    assert result(_outcome(), _outcome(margin=math.inf, module_right=None, cause_right=None))
    assert not result(_outcome(caught=False))
    assert not result(_outcome(margin=99.0))
    assert not result(_outcome(module_right=False))
    assert not result(_outcome(cause_right=False))
    assert result(*[_outcome()] * 9, _outcome(cause_right=False))
    assert not result(*[_outcome()] * 8, _outcome(cause_right=False))
    assert not result(_outcome(), alarms=("x",))
    assert not result(_outcome(), runs=0)
    assert not result()
