"""What a proof would have caught, and that it is true: made by hand in the port, seen fails and blind passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
import torch
from flax import nnx

import parity
from parity.power import PowerReport, power
from t2t_parity.selftest.foreign import FOREIGN, decoders, encoders

IDS = np.array([[3, 1, 7, 9, 4, 2], [5, 2, 8, 6, 10, 1]])
WHOLE = np.ones_like(IDS)
PADDED = WHOLE * (np.arange(6) < np.array([[6], [4]]))


def statuses(report: PowerReport, words: str) -> set[str]:
    """What came of the mistakes whose text holds these words."""
    found = {row.status for row in report.rows if words in f"{row.switch}: {row.text}"}
    assert found, f"no mistake says {words!r}"
    return found


def remedies(report: PowerReport, words: str) -> set[str]:
    return {row.remedy for row in report.blind if words in f"{row.switch}: {row.text}"}


@pytest.fixture(scope="module")
def bert() -> Any:
    return FOREIGN["bert"].make(0)[:2]


@pytest.fixture(scope="module")
def whole(bert: Any) -> PowerReport:
    """Of a BERT whose sentences have no padding."""
    return power(bert[0], (IDS, WHOLE), level="forward")


@pytest.fixture(scope="module")
def padded(bert: Any) -> PowerReport:
    return power(bert[0], (IDS * PADDED, PADDED), level="forward")


def passes(pair: Any, inputs: Any) -> bool:
    return parity.check(*pair, inputs, level="forward").passed


def test_a_mask_without_padding_is_blind_to_the_mask(whole: PowerReport, padded: PowerReport):
    for words in ("without mul by -1e+04", "div: -> mean over all entries of the output of layer.0"):
        assert statuses(whole, words) == {"blind"}
        assert remedies(whole, words) == {"a mask with padding, of another length in each row"}
        assert statuses(padded, words) == {"seen"}


def _without_mask(self: Any, scores: jax.Array, mask: jax.Array) -> jax.Array:
    return jax.nn.softmax(scores, axis=-1)


def _mean_of_all(self: Any, x: jax.Array, mask: jax.Array) -> jax.Array:
    return x.mean(1)


def _tanh_gelu(self: Any, x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=True)


BLIND = [(encoders.BertAttention, "weights", _without_mask), (encoders.Bert, "pooled", _mean_of_all)]


@pytest.mark.parametrize(("cls", "name", "wrong"), BLIND)
def test_what_is_blind_passes(bert: Any, monkeypatch: pytest.MonkeyPatch, cls: type, name: str, wrong: Callable):
    monkeypatch.setattr(cls, name, wrong)
    assert passes(bert, (IDS, WHOLE))
    assert not passes(bert, (IDS * PADDED, PADDED))


def test_what_is_seen_fails(bert: Any, whole: PowerReport, monkeypatch: pytest.MonkeyPatch):
    assert statuses(whole, "gelu -> tanh gelu") == {"seen"}
    monkeypatch.setattr(encoders.BertLayer, "act", _tanh_gelu)
    assert not passes(bert, (IDS, WHOLE))


def test_one_token_does_not_show_causality(monkeypatch: pytest.MonkeyPatch):
    pair = FOREIGN["gpt"].make(0)[:2]
    rules = FOREIGN["gpt"].rules
    one = np.array([[3], [5]])
    report = power(pair[0], one, level="forward")
    blind = {row.switch for row in (*report.blind, *report.same)}
    assert "attention mask" in blind or "softmax axis" in blind
    monkeypatch.setattr(decoders.GPTAttention, "weights", lambda self, logits: jax.nn.softmax(logits, axis=-1))
    assert parity.check(*pair, one, level="forward", rules=rules).passed
    assert not parity.check(*pair, IDS[:, :5], level="forward", rules=rules).passed


class Gated(torch.nn.Module):
    """A branch behind a gate that starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc = torch.nn.LayerNorm(6), torch.nn.Linear(6, 6)
        self.gate = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.gate * torch.relu(self.fc(self.norm(x)))


NUMBERS = np.random.RandomState(0).standard_normal((3, 6))


def test_a_gate_of_zero_is_blind_in_the_forward_pass_and_not_in_its_gradient():
    torch.manual_seed(0)
    model = Gated()
    forward, gradients = power(model, NUMBERS, level="forward"), power(model, NUMBERS, level="gradients")
    assert statuses(forward, "relu -> sigmoid") == {"blind"}
    assert any("gate all 0" in remedy for remedy in remedies(forward, "relu -> sigmoid"))
    assert statuses(gradients, "relu -> sigmoid") == {"seen"}


def test_a_fresh_norm_does_not_show_its_scale():
    report = power(torch.nn.LayerNorm(6), NUMBERS, level="forward")
    assert statuses(report, "without its scale") == statuses(report, "without its bias") == {"blind"}
    assert any("weight all 1, bias all 0" in remedy for remedy in remedies(report, "without its scale"))


class Constant(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(2, 2, 1)
        self.norm = torch.nn.BatchNorm2d(2)
        self.drop = torch.nn.Dropout(0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.norm(self.conv(x))).mean((2, 3))


IMAGES = np.random.RandomState(0).standard_normal((2, 2, 3, 3))


def test_sizes_that_make_no_difference_are_not_blindness():
    report = power(Constant(), IMAGES, level="forward")
    assert statuses(report, "kernel flipped along axes (2, 3)") == {"same function"}
    (row,) = [row for row in report.same if row.text.startswith("conv2d: kernel flipped along axes (2, 3)")]
    assert "kernel [1, 1]" in row.remedy


def test_training_mode_alone_shows_dropout_and_running_statistics():
    blind = power(Constant(), IMAGES, level="gradients")
    assert remedies(blind, "dropout rate") == remedies(blind, "running statistics") == {'level="train"'}
    seen = power(Constant(), IMAGES, level="train")
    assert statuses(seen, "dropout rate") == statuses(seen, "running statistics") == {"seen"}


def test_images_that_are_equal_do_not_show_the_order_of_the_batch():
    equal = np.repeat(IMAGES[:1], 2, 0)
    report = power(Constant(), equal, level="forward")
    assert "blind" in statuses(report, "operand 1 flipped along axis 0")
    assert "blind" not in statuses(power(Constant(), IMAGES, level="forward"), "operand 1 flipped along axis 0")


def test_the_same_call_gives_the_same_report_and_the_budget_is_kept():
    torch.manual_seed(0)
    model = Gated()
    assert power(model, NUMBERS) == power(model, NUMBERS)
    small = power(model, NUMBERS, budget=5)
    assert small.untried > 0
    assert small.work <= 15
    assert f"{small.untried} not tried" in small.summary


def test_the_model_stays_as_it_is():
    model = Constant().train()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    power(model, IMAGES, level="train")
    assert model.training
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert type(model.norm) is torch.nn.BatchNorm2d


@pytest.mark.parametrize(("options", "words"), [({"level": "all"}, "level 'all'"), ({"budget": 0}, "budget 0")])
def test_what_cannot_be_understood_is_said(options: dict, words: str):
    with pytest.raises(ValueError, match=words):
        power(torch.nn.Linear(6, 2), NUMBERS, **options)


def test_check_reports_its_power():
    torch_model, jax_model = torch.nn.LayerNorm(6), nnx.LayerNorm(6, epsilon=1e-5, rngs=nnx.Rngs(0))
    parity.torch_to_jax(torch_model, jax_model)
    lines: list[str] = []
    report = parity.check(torch_model, jax_model, NUMBERS, power=True, progress=lines.append)
    assert report.passed
    assert report.power is not None
    assert report.power.summary in str(report)
    assert report.power.summary in report.to_html()
    assert parity.Report.from_json(report.to_json()).power == report.power
    assert any(line.startswith("power, ") for line in lines)
    assert parity.check(torch_model, jax_model, NUMBERS, level="forward").power is None


def test_inputs_by_name_and_integers_are_taken():
    class Named(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(7, 4)

        def forward(self, *, ids: torch.Tensor) -> torch.Tensor:
            return self.embed(ids)

    report = power(Named(), {"ids": np.array([[1, 2, 3]])}, level="forward")
    assert statuses(report, "ids + 1") == {"seen"}
