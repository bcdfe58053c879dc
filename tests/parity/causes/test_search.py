"""The search: by work, equal failures once, two mistakes in one module, and no cause where none is known."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from parity.causes import catalogue, name_causes, search
from parity.causes.failures import distance
from parity.causes.fit_constant import fitted
from parity.causes.precision.rounding import alike, random_signs
from parity.causes.registry import ENTRIES
from parity.measure.gates import Row
from parity.pairing.match_calls import Pair
from parity.recording.capture import Call, Key
from t2t_parity.selftest.foreign import MISTAKES
from t2t_parity.selftest.run import try_mutation
from tests.support.parity.named import ROOT, Function, Tensor, cause_of, double, draw, pair

X = draw(2, 5, 6)


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc = torch.nn.LayerNorm(6), torch.nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = x + F.gelu(self.fc(self.norm(x)))
        return x * 0.5


def stack(count: int) -> tuple[Any, list[Pair]]:
    model = double(torch.nn.Sequential(*(Block() for _ in range(count))))
    names = [f"{i}{leaf}" for i in range(count) for leaf in (".norm", ".fc", "")] + [""]
    return model, [pair(model.get_submodule(name), (name, 0)) for name in names]


def blocks_wrong(count: int, wrong: list[bool]) -> tuple[Any, Any, list[Pair], dict[Key, Call], list[Row]]:
    """A stack in which some blocks use the GELU by tanh."""
    model, pairs = stack(count)
    calls, rows, x = {}, [], X
    for i, block in enumerate(model):
        with torch.no_grad():
            form = "tanh" if wrong[i] else "none"
            theirs = (x + F.gelu(block.fc(block.norm(x)), approximate=form)) * 0.5
            calls[f"{i}", 0] = Call([x.numpy()], [theirs.numpy()])
            rows.append(Row(f"{i}", "layer", "forced", "float64", 1e-3 * (i + 1) * wrong[i], 1e-13))
            x = block(x)
    return model, (X,), pairs, calls, rows


def test_equal_failures_are_searched_once_and_named_all(monkeypatch: pytest.MonkeyPatch) -> None:
    count = {"replays": 0}
    replay = search.Search._replay

    def counted(self: search.Search, change: search.Change) -> object:
        count["replays"] += 1
        return replay(self, change)

    monkeypatch.setattr(search.Search, "_replay", counted)
    alone = name_causes(*blocks_wrong(1, [True]))
    once = count["replays"]
    count["replays"] = 0
    causes = name_causes(*blocks_wrong(12, [True] * 12))
    assert [cause.module for cause in causes] == [str(i) for i in range(12)]
    assert {cause.switch for cause in (*causes, *alone)} == {"gelu form"}
    assert count["replays"] < once + 12 * 8


def test_the_search_ends_by_work_not_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 1e12)
    parts = blocks_wrong(2, [True, False])
    notes: list[str] = []
    assert name_causes(*parts, notes, work=1e5) == ()
    assert notes == ["the cause was not looked for to the end (too much to compute) in: 0"]
    notes.clear()
    assert [cause.module for cause in name_causes(*parts, notes)] == ["0"]
    assert notes == []


def test_two_mistakes_in_one_module_are_both_named() -> None:
    model, pairs = stack(1)
    block = model[0]
    y = block.norm(X)
    wrong = (y + F.gelu(block.fc(y), approximate="tanh")) * 0.25
    # The norm's input is right; what fc gets is wrong too.
    calls = {
        ("0.fc", 0): Call([X.numpy()], [block.fc(y).detach().numpy()]),
        ("0", 0): Call([X.numpy()], [((X + F.gelu(block.fc(y))) * 0.25).detach().numpy()]),
    }
    rows = [Row("0.fc", "calls", "forced", "float64", 1.0, 1e-13), Row("0", "layer", "forced", "float64", 1.0, 1e-13)]
    causes = name_causes(model, (X,), pairs, calls, rows)
    assert wrong.shape == X.shape
    assert {cause.switch for cause in causes} == {"wrong tensor", "scale"} or len(causes) == 1
    assert all(cause.error_after <= 1e-13 for cause in causes)


def test_every_entry_is_registered_under_a_function() -> None:
    assert catalogue.ENTRIES is ENTRIES
    assert {"softmax", "scaled_dot_product_attention", "lstm", "conv2d", "layer_norm", "mul", "*"} <= ENTRIES.keys()


# ---- what is no cause ----


@pytest.mark.parametrize("seed", range(6))
def test_noise_of_any_size_has_no_cause(seed: int) -> None:
    module = double(Block())
    noise = draw(*X.shape, seed=seed + 10)
    for size in (1e-1, 1e-5, 1e-8, 1e-11):
        with torch.no_grad():
            wrong = module(X) + size * noise
        assert cause_of(module, X, wrong) is None, size


def test_an_unknown_constant_of_float32_s_size_is_no_rounding() -> None:
    x = draw(4, 20, 8)
    module = double(torch.nn.LayerNorm(8))
    # An error of 1e-8, smooth in the statistics; JAX adds the root of the variance to it.
    with torch.no_grad():
        wrong = module(x) * (1 + 3e-8 * x.std(-1, keepdim=True).sqrt())
    cause = cause_of(module, x, wrong)
    assert cause is None or "leak" not in cause.switch


def test_an_error_beside_one_huge_element_is_seen() -> None:
    right = np.ones((4, 8)) + np.arange(32.0).reshape(4, 8) / 10
    right[0, 0] = -1e9
    wrong = right.copy()
    wrong[1:] *= 1 + 1e-5
    assert distance(wrong, right) > 1e-6


def test_what_is_not_finite_is_compared_where_it_is() -> None:
    x = draw(2, 6, 6)
    hidden = torch.ones(6, 6, dtype=torch.bool).triu(1)
    module = Function(lambda x: x.masked_fill(hidden, -torch.inf).softmax(-1))
    cause = cause_of(module, x, x.masked_fill(~hidden, -torch.inf).softmax(-1))
    assert cause is not None
    assert "inverted" in cause.description
    assert cause_of(module, x, torch.full_like(x, torch.nan)) is None


# ---- parts ----


def test_a_constant_is_found_only_where_all_elements_agree() -> None:
    x = np.linspace(0.1, 2, 20)
    assert fitted(lambda c: np.tanh(c * x), np.tanh(0.37 * x), 1.0) == pytest.approx(0.37, rel=1e-12)
    assert fitted(lambda c: np.tanh(c * x), np.tanh(0.37 * x) + 1e-6 * np.sin(9 * x), 1.0) is None
    assert fitted(lambda c: np.tanh(c * x[:3]), np.tanh(0.37 * x[:3]), 1.0) is None
    assert fitted(lambda c: np.tanh(c * x), np.tanh(x), 1.0) is None


def test_errors_agree_element_by_element_or_not_at_all() -> None:
    draw_ = np.random.RandomState(0)
    r = draw_.standard_normal((8, 16))
    e = 1e-8 * draw_.standard_normal((8, 16))
    assert alike([r + e], [r], [r + 1.1 * e], "elements") is not None
    assert alike([r + e], [r], [r + e[::-1]], "elements") is None
    assert alike([r + e], [r], [r + 10 * e], "elements") is None
    rows = draw_.standard_normal((8, 1))
    assert alike([r + e], [r], [r + rows * e], "rows") is not None
    assert alike([r + e], [r], [r + e[:, ::-1]], "rows") is None


def test_rounding_has_no_order() -> None:
    draw_ = np.random.RandomState(0)
    r = draw_.standard_normal((16, 16))
    assert random_signs(r.astype(np.float32) - r, r)
    assert not random_signs(1e-8 * r, r)
    assert not random_signs(1e-8 * np.abs(r), r)
    assert not random_signs(1e-8 * np.sign(r[:, :1]) * np.ones_like(r), r)
    assert ROOT == ("", 0)


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("gpt: post-norm", None),
        ("bert: pre-norm", None),
        ("policy: legal moves masked", "mask"),
        ("spectral: highest modes", "token taken"),
    ],
)
def test_a_part_that_agrees_by_chance_is_no_cause(name: str, cause: str | None) -> None:
    """A norm moved over a sum returns tensors that are at hand; a comparison negated is no step taken twice."""
    outcome = try_mutation(next(mutation for mutation in MISTAKES if mutation.name == name))
    assert (outcome.module_right, outcome.cause, outcome.false_causes) == (True, cause, ())


class Dropped(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.drop, self.norm = torch.nn.Linear(6, 6), torch.nn.Dropout(0.1), torch.nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.drop(self.fc(x)))


def test_of_modules_that_return_the_same_none_is_exchanged() -> None:
    """A dropout behind the norm in place of before it: in evaluation its results are those of the layer before."""
    model = double(Dropped())
    pairs = [pair(model.get_submodule(name), (name, 0)) for name in ("fc", "drop", "norm", "")]
    hidden = model.fc(X).detach()
    calls = {
        ("norm", 0): Call([hidden.numpy()], [model.norm(hidden).detach().numpy()]),
        ("drop", 0): Call([model.norm(hidden).detach().numpy()], [hidden.numpy()]),
        ROOT: Call([X.numpy()], [hidden.numpy()]),
    }
    rows = [Row("drop", "calls", "forced", "float64", 1.0, 1e-13), Row("", "output", "forced", "float64", 1.0, 1e-13)]
    causes = name_causes(model, (X,), pairs, calls, rows)
    assert "branches exchanged" not in {cause.switch for cause in causes}
