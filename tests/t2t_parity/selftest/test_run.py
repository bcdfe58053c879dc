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
import torch
from rich.console import Console

import parity.judgement.rows
from parity import Gates
from t2t_parity.selftest import MUTATIONS, Outcome, Selftest, run, table, verdict
from t2t_parity.selftest.fast_check import fast_check
from t2t_parity.selftest.foreign import FOREIGN
from t2t_parity.selftest.mutation import GROUPS, Mutation, calling
from t2t_parity.selftest.pairs import PAIRS, fresh, make, rules_of
from t2t_parity.selftest.run import try_mutation, try_unmutated

PROOF = importlib.import_module("parity.proof.stages")
RUN = importlib.import_module("t2t_parity.selftest.run")  # `t2t_parity.selftest.run` is the function
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
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) >= 200
    pairs = Counter(mutation.pair for mutation in MUTATIONS if isinstance(mutation, Mutation))
    assert set(pairs) == set(PAIRS)
    assert len(FOREIGN) >= 12
    assert all(pairs[name] >= 5 for name in FOREIGN)


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
    for seed in (7, 8) if name in FOREIGN else (7,):
        report = fast_check(*make(name, seed), rules=rules_of(name))
        assert report.passed, report.failures[:3]
        assert report.causes == ()


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_pairs_hold_nothing_neutral(name: str) -> None:
    torch_model, _, inputs = make(name, seed=0)
    for tensor in torch_model.state_dict().values():
        assert tensor.ndim == 0 or len(np.unique(tensor.numpy())) > 0.9 * tensor.numel()
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    other = make(name, seed=1)[2]
    assert not np.array_equal(given[0], (other if isinstance(other, tuple) else (other,))[0])


@pytest.mark.parametrize("name", FOREIGN)
def test_what_comes_out_of_a_foreign_pair_has_one_layout(name: str) -> None:
    torch_model, jax_model, inputs = make(name, seed=0)
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    arrays = [x.astype(np.float32) if x.dtype.kind == "f" else x for x in given]
    ours = torch_model.eval()(*map(torch.from_numpy, arrays))
    with jax.disable_jit():
        jax_model.eval()
        theirs = jax_model(*(np.moveaxis(x, 1, -1) if x.ndim > 3 else x for x in arrays))  # type: ignore[operator]
    assert _structure(ours) == _structure(theirs)


def _structure(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _structure(value) for key, value in tree.items()}
    return [_structure(x) for x in tree] if isinstance(tree, tuple) else tuple(tree.shape)


SAMPLE = (
    "gpt: mask one later",
    "llama: heads of keys tiled",
    "bert: mean over the padding too",
    "timm: v before k",
    "lstm: gates i, g, f, o",
    "gru: reset in front of the product",
    "unet: transposed kernel not turned",
    "resnet: shortcut missing",
    "mobilenet: ReLU for ReLU6",
    "wavenet: dilation of 1",
    "volumes: kernel depth last",
    "convnext: LayerNorm eps 1e-5",
    "switch: weights not made to sum to 1",
    "vae: log variance under another name",
    "dueling: value does not train",
    "policy: prior off by 1e-5 beside masked logits",
    "spectral: modes conjugated",
    "graph: edges backwards",
)
"""One mistake in every architecture that is not ours."""


def test_the_sample_has_one_of_every_architecture() -> None:
    assert [name.partition(":")[0] for name in SAMPLE] == list(FOREIGN)


@pytest.mark.parametrize("name", SAMPLE)
def test_a_mistake_in_a_foreign_pair_is_caught_and_named(name: str) -> None:
    found = run(chosen(name), seeds=0)
    assert found.outcomes[0].passed, found.outcomes
    assert found.modules_named == found.causes_named == 1, found.outcomes


OPAQUE_SAMPLE = (
    "ReLU for GELU",
    "LayerNorm eps 1e-5 in ViT",
    "v, q, k for q, k, v",
    "padding SAME",
    "wavenet: residual missing",
)


def test_mistakes_are_named_in_functions_without_modules() -> None:
    found = run(chosen(*OPAQUE_SAMPLE, "kernel rotated"), seeds=1, families=("vit",), opaque=True)
    assert [outcome.mutation for outcome in found.outcomes] == list(OPAQUE_SAMPLE)  # the others need modules
    assert found.passed, found
    assert found.modules_named == found.causes_named == 1
    assert found.correct_runs == 1


def test_mutations_leave_no_trace() -> None:
    softmax, concatenate = jax.nn.softmax, jnp.concatenate
    run(chosen("softmax over the queries", "distillation token first"), seeds=0)
    assert jax.nn.softmax is softmax
    assert jnp.concatenate is concatenate
    assert fast_check(*fresh("distilled")).passed


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

    monkeypatch.setattr(parity.judgement.rows, "rel_f", signed_mean)
    assert fails("images in another order", "upside down")


def test_dropping_the_forced_rows_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    original = PROOF.layer_rows
    monkeypatch.setattr(
        PROOF,
        "layer_rows",
        lambda pairs, references, calls, mode, *rest: (
            [] if mode == "forced" else original(pairs, references, calls, mode, *rest)
        ),
    )
    assert fails(*WEAK)


def test_ignoring_a_layer_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    original = PROOF.layer_rows
    monkeypatch.setattr(
        PROOF,
        "layer_rows",
        lambda pairs, *rest: [row for row in original(pairs, *rest) if not row.name.startswith("norm1")],
    )
    assert fails(*WEAK)


def test_never_failing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity.judgement.rows, "rel_f", lambda value, reference: 0.0)
    assert fails(*WEAK)


def test_always_failing_is_a_false_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity.judgement.rows, "rel_f", lambda value, reference: 1.0)
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
    assert not result(_outcome(false_causes=("c",)))
    assert result(*[_outcome()] * 33, _outcome(module_right=False))
    assert not result(*[_outcome()] * 32, _outcome(module_right=False))
    assert result(*[_outcome()] * 9, _outcome(cause_right=False))
    assert not result(*[_outcome()] * 8, _outcome(cause_right=False))
    assert not result(_outcome(), alarms=("x",))
    assert not result(_outcome(), runs=0)
    assert not result()


# ---- false causes, refusals and crashes ----


def mutated(call: Any, cause: str | None, *also: str) -> Outcome:
    return try_mutation(Mutation("m", "forward", "dueling", "the model", cause, calling("", call, "joined"), also))


def doubled(self: Any, original: Any, value: jax.Array, advantage: jax.Array) -> jax.Array:
    return value + advantage


def test_a_cause_that_is_not_the_mistake_is_false() -> None:
    right = mutated(doubled, "residual")
    assert right.passed
    assert (right.cause, right.cause_right, right.false_causes) == ("residual", True, ())
    wrong = mutated(doubled, "pooling")
    assert not wrong.passed
    assert (wrong.cause, wrong.cause_right, wrong.false_causes) == ("residual", False, ("residual",))
    unknown = mutated(doubled, None)
    assert not unknown.passed
    assert (unknown.cause_right, unknown.false_causes) == (None, ("residual",))


def test_another_switch_that_says_the_same_is_right() -> None:
    assert mutated(doubled, "pooling", "residual").cause_right
    assert mutated(doubled, None, "residual").passed


@pytest.mark.parametrize(("error", "caught"), [(ValueError, True), (TypeError, False)])
def test_a_pair_that_is_refused_is_caught_and_a_crash_is_not(
    error: type[Exception], caught: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raising(*args: Any, **options: Any) -> None:
        raise error("no such shape")

    monkeypatch.setattr(RUN, "fast_check", raising)
    found = mutated(doubled, "residual")
    assert (found.caught, found.module_right, found.cause_right) == (caught, False, False)
    assert found.raised == f"{error.__name__}: no such shape"
    stream = io.StringIO()
    Console(file=stream, width=200).print(table(Selftest((found,), (), 1, 1.0)))
    assert found.raised in stream.getvalue()


def test_a_right_pair_that_crashes_is_a_false_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*args: Any, **options: Any) -> None:
        raise TypeError("no")

    monkeypatch.setattr(RUN, "fast_check", crash)
    assert try_unmutated("dueling", 3) == ("dueling, seed 3", "dueling, seed 3: TypeError: no")


def test_false_causes_are_told() -> None:
    found = Selftest((_outcome(false_causes=("pooling", "scale")), _outcome()), (), 5, 1.0)
    assert found.false_causes == 1
    assert json.loads(found.to_json())["false_causes"] == 1
    assert "1 false causes" in verdict(found)
    stream = io.StringIO()
    Console(file=stream, width=200).print(table(found))
    assert "FALSE: pooling, scale" in stream.getvalue()
