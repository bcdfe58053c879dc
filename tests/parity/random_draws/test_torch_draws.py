"""Every spelling of a draw in PyTorch is seen, with its law, and gets what is handed out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from parity.random_draws.matching import SILENT, Law, numbers
from parity.random_draws.torch_draws import TorchDraws, torch_sites

X = torch.arange(1.0, 49).reshape(2, 3, 8)
IMAGE = X.reshape(2, 3, 2, 4)


class Model(torch.nn.Module):
    def __init__(self, run: Callable[..., Any], **parts: torch.nn.Module) -> None:
        super().__init__()
        self.fc, self.run = torch.nn.Linear(8, 8), run
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: torch.Tensor) -> Any:
        return self.run(self, x)


def attention(need_weights: bool) -> Model:
    parts = {"attn": torch.nn.MultiheadAttention(8, 2, dropout=0.2, batch_first=True)}
    return Model(lambda m, x: m.attn(x, x, x, need_weights=need_weights)[0], **parts)


CASES: dict[str, tuple[Model, Law, tuple[int, ...]]] = {
    "module": (Model(lambda m, x: m.drop(x), drop=torch.nn.Dropout(0.2)), Law("bernoulli", 0.8), (2, 3, 8)),
    "functional": (Model(lambda m, x: F.dropout(x, 0.2, m.training)), Law("bernoulli", 0.8), (2, 3, 8)),
    "alpha": (Model(lambda m, x: m.drop(x), drop=torch.nn.AlphaDropout(0.2)), Law("bernoulli", 0.8), (2, 3, 8)),
    "channels": (Model(lambda m, x: F.dropout2d(IMAGE, 0.2)), Law("bernoulli", 0.8), (2, 3, 1, 1)),
    "attention": (attention(False), Law("bernoulli", 0.8), (2, 2, 3, 3)),
    "attention with weights": (attention(True), Law("bernoulli", 0.8), (4, 3, 3)),
    "fused attention": (
        Model(lambda m, x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.2, is_causal=True)),
        Law("bernoulli", 0.8),
        (2, 3, 3),
    ),
    "between layers": (
        Model(lambda m, x: m.lstm(x)[0], lstm=torch.nn.LSTM(8, 4, 2, dropout=0.2, batch_first=True)),
        Law("bernoulli", 0.8),
        (3, 2, 4),
    ),
    "in place": (Model(lambda m, x: x * x.new_empty(2, 1, 1).bernoulli_(0.7)), Law("bernoulli", 0.7), (2, 1, 1)),
    "of probabilities": (
        Model(lambda m, x: x * torch.bernoulli(torch.full((2, 1, 1), 0.5))),
        Law("bernoulli", 0.5),
        (2, 1, 1),
    ),
    "uniform": (Model(lambda m, x: x * (torch.rand(2, 1, 1) < 0.7)), Law("uniform"), (2, 1, 1)),
    "uniform in place": (Model(lambda m, x: x + torch.empty(3, 8).uniform_(-1, 1)), Law("uniform"), (3, 8)),
    "noise": (Model(lambda m, x: x + torch.randn_like(x)), Law("normal"), (2, 3, 8)),
    "distribution": (Model(lambda m, x: torch.distributions.Normal(x, 1.0).rsample()), Law("normal"), (2, 3, 8)),
    "gumbel": (Model(lambda m, x: F.gumbel_softmax(x)), Law("exponential"), (2, 3, 8)),
    "rrelu": (Model(lambda m, x: F.rrelu(-x, training=True)), Law("uniform"), (2, 3, 8)),
    "permutation": (Model(lambda m, x: x[:, torch.randperm(3)]), Law("permutation"), (3,)),
    "integers": (Model(lambda m, x: x[:, torch.randint(0, 3, (2,))]), Law("integers"), (2,)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_law_of_every_spelling(name: str) -> None:
    model, law, shape = CASES[name]
    (site,) = torch_sites(model, lambda: model(X))
    assert (site.law.family, site.shape, site.constant) == (law.family, shape, False)
    assert site.law.keep == (None if law.keep is None else pytest.approx(law.keep, abs=1e-7))
    assert "test_torch_draws.py" in site.line


@pytest.mark.parametrize("name", CASES)
def test_what_is_handed_out_decides(name: str) -> None:
    model, _, _ = CASES[name]
    (site,) = torch_sites(model, lambda: model(X))

    def run(seed: int) -> torch.Tensor:
        with TorchDraws(model, {site.key: [numbers(site, site.law.keep, seed)]}), torch.no_grad():
            return model(X)

    assert torch.equal(run(1), run(1))
    assert not all(torch.equal(run(1), run(seed)) for seed in range(2, 9))


def test_a_silent_dropout_changes_nothing_and_the_global_generator_stays() -> None:
    model = CASES["module"][0]
    before = torch.get_rng_state()
    with TorchDraws(model, {("drop", 0): [SILENT]}):
        assert torch.allclose(model(X), X)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_checkpointed_draw_is_drawn_once() -> None:
    model = Model(lambda m, x: checkpoint(lambda y: F.dropout(m.fc(y), 0.5).sin(), x, use_reentrant=False))
    with TorchDraws(model) as draws:
        model(X).sum().backward()
    assert len(draws.sites) == 1


def test_a_generator_with_a_seed_of_its_own_draws_a_constant() -> None:
    model = Model(lambda m, x: x + torch.rand(3, 8, generator=torch.Generator().manual_seed(0)))
    (site,) = torch_sites(model, lambda: model(X))
    assert site.constant


def test_nothing_is_drawn_at_the_ends_and_in_evaluation() -> None:
    for rate in (0.0, 1.0):
        model = Model(lambda m, x, rate=rate: F.dropout(x, rate))
        assert torch_sites(model, lambda model=model: model(X)) == []
    model = CASES["module"][0].eval()
    assert torch_sites(model, lambda: model(X)) == []
    model.train()


def test_an_unknown_law_is_recorded_and_left_alone() -> None:
    model = Model(lambda m, x: torch.poisson(x))
    (site,) = torch_sites(model, lambda: model(X))
    assert site.law.kind is None
    with TorchDraws(model, {("", 0): [np.zeros((2, 3, 8))]}):
        assert model(X).sum() > 0
