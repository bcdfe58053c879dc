"""Every module's own derivative: the wrong one is named, and no other."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from parity import Gates, LeafRule, Report, Row, Rules, check, torch_to_jax
from parity.proof.module_derivatives import backward_rows
from parity.proof.stages import Proof
from parity.report.findings import Cause
from t2t_parity.selftest.mutation import Apply, calling
from t2t_parity.selftest.pairs import fresh

stop = jax.lax.stop_gradient


def rows_of(pair: str, apply: Apply | None = None) -> tuple[list[Row], tuple[Cause, ...]]:
    torch_model, jax_model, inputs = fresh(pair)
    if apply:
        apply(jax_model)
    proof = Proof.of(torch_model, jax_model, inputs, Rules(), Gates())
    sides = proof.torch_side("float64"), proof.jax_side("float64")
    return backward_rows(*sides, proof.arrays, proof.pairing, proof.ledger, proof.gates)


def wrong(pair: str, apply: Apply) -> list[str]:
    return [row.name for row in rows_of(pair, apply)[0] if not row.passed]


@pytest.mark.parametrize("pair", ["convnet", "dropout", "resize", "switch"])  # of "switch" a module returns a scalar
def test_right_pairs_pass_in_every_module(pair: str) -> None:
    rows, causes = rows_of(pair)
    assert all(row.passed for row in rows), [row for row in rows if not row.passed]
    assert rows[-1].name == ""
    assert len(rows) > 1
    assert causes == ()
    # The figures are measured, not left out: rounding leaves traces.
    assert any(row.error > 0 for row in rows)


def test_a_cut_inside_a_leaf_names_the_leaf() -> None:
    assert wrong("convnet", calling("act1", lambda self, original, x: stop(original(x)))) == ["act1"]


def test_a_cut_residual_names_the_module_that_adds() -> None:
    def cut(self, original, x):
        x = self.act1(self.norm1(self.conv1(x)))
        x = stop(x) + self.act2(self.norm2(self.conv2(x)))
        return self.head(self.down(x).mean((1, 2)))

    assert wrong("convnet", calling("", cut)) == [""]


def test_a_parameter_that_gets_no_gradient_is_told() -> None:
    def frozen(self, original, x):
        return x @ self.kernel[...] + stop(self.bias[...]).reshape(1, 1, -1)

    rows, causes = rows_of("dropout", calling("fc1", frozen))
    assert [row.name for row in rows if not row.passed] == ["fc1"]
    assert [(cause.module, cause.switch) for cause in causes] == [("fc1", "gradient cut")]
    assert "fc1.bias" in causes[0].description


def test_a_multiple_is_told() -> None:
    _, (cause,) = rows_of("dropout", calling("fc2", lambda self, original, x: 3 * original(x) - 2 * stop(original(x))))
    assert (cause.module, cause.switch) == ("fc2", "gradient scale")
    assert "3 times" in cause.description
    assert np.isfinite(cause.error_before)


# ---- small pairs of our own ----


def checked(torch_model: torch.nn.Module, jax_model: nnx.Module, x: np.ndarray, rules: Rules | None = None) -> Report:
    torch_to_jax(torch_model, jax_model, rules=rules)
    return check(torch_model, jax_model, x, rules=rules)


INDICES = np.random.RandomState(0).randint(0, 6, (2, 5))
X = np.random.RandomState(1).standard_normal((2, 5, 4))


class Tokens(torch.nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.e, self.h = torch.nn.Embedding(6, 4, **options), torch.nn.Linear(4, 3)

    def forward(self, i: torch.Tensor) -> torch.Tensor:
        return self.h(torch.tanh(self.e(i)))


class JaxTokens(nnx.Module):
    def __init__(self) -> None:
        self.e, self.h = nnx.Embed(6, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 3, rngs=nnx.Rngs(0))

    def __call__(self, i: jax.Array) -> jax.Array:
        return self.h(jnp.tanh(self.e(i)))


@pytest.mark.parametrize("option", [{"padding_idx": 0}, {"scale_grad_by_freq": True}])
def test_what_an_embedding_does_with_its_gradient_is_named(option: dict[str, Any]) -> None:
    report = checked(Tokens(**option), JaxTokens(), INDICES)
    assert report.first_divergence == "e"
    assert [(cause.module, cause.switch) for cause in report.causes] == [("e", *option)]


class JaxPadded(nnx.Module):
    """Tokens and a table in one, so that no module inside it has a partner."""

    def __init__(self) -> None:
        self.w, self.k, self.b = (nnx.Param(jnp.zeros(shape)) for shape in ((6, 4), (4, 3), (3,)))

    def __call__(self, i: jax.Array) -> jax.Array:
        return jnp.tanh(self.w[...][i]) @ self.k[...] + self.b[...].reshape(1, 1, -1)


def test_integers_and_modules_without_a_partner_are_judged_too() -> None:
    leaves = (LeafRule("e.weight", "w"), LeafRule("h.weight", "k", axes=(1, 0)), LeafRule("h.bias", "b"))
    rules = Rules(leaves={JaxPadded: leaves}, unpaired=["*"])
    report = checked(Tokens(padding_idx=0), JaxPadded(), INDICES, rules)
    assert report.first_divergence == "the model"
    assert [cause.switch for cause in report.causes] == ["padding_idx"]


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.e, self.head = torch.nn.Embedding(6, 4), torch.nn.Linear(4, 6, bias=False)
        self.head.weight = self.e.weight

    def forward(self, i: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.e(i)))


class JaxUntied(nnx.Module):
    def __init__(self) -> None:
        self.e = nnx.Embed(6, 4, rngs=nnx.Rngs(0))
        self.head = nnx.Linear(4, 6, use_bias=False, rngs=nnx.Rngs(0))

    def __call__(self, i: jax.Array) -> jax.Array:
        return self.head(jnp.tanh(self.e(i)))


def test_a_head_that_is_tied_on_one_side_is_named() -> None:
    report = checked(Tied(), JaxUntied(), INDICES)
    assert report.first_divergence == "e"
    assert [cause.switch for cause in report.causes] == ["untied weights"]


class JaxTied(nnx.Module):
    """The table is the head too; what it is as a head is not trained."""

    def __init__(self) -> None:
        self.e = nnx.Embed(6, 4, rngs=nnx.Rngs(0))

    def __call__(self, i: jax.Array) -> jax.Array:
        return jnp.tanh(self.e(i)) @ stop(self.e.embedding[...]).T


def test_a_head_that_jax_keeps_under_one_name_is_judged() -> None:
    rules = Rules(torch_only=["head.weight"], unpaired=["head"])
    report = checked(Tied(), JaxTied(), INDICES, rules)
    assert report.first_divergence == "e"


class Gated(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.fc(x)
        return x + torch.sigmoid(y) * torch.tanh(2 * y)


class JaxGated(nnx.Module):
    def __init__(self, *, cut: str) -> None:
        self.fc, self.cut = nnx.Linear(4, 4, rngs=nnx.Rngs(0)), cut

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.fc(x)
        gate, value, skip = jax.nn.sigmoid(y), jnp.tanh(2 * y), x
        gate, value, skip = (
            stop(a) if self.cut == n else a for a, n in ((gate, "gate"), (value, "value"), (skip, "skip"))
        )
        return skip + gate * value


@pytest.mark.parametrize(
    ("cut", "text"), [("gate", "sigmoid"), ("value", "mul"), ("skip", "add: no gradient through operand 1")]
)
def test_a_gradient_that_is_cut_inside_a_module_is_found(cut: str, text: str) -> None:
    report = checked(Gated(), JaxGated(cut=cut), X)
    assert report.first_divergence == "the model"
    assert [cause.switch for cause in report.causes] == ["gradient cut"]
    assert text in report.causes[0].description


def test_a_wrong_derivative_without_a_cause_has_none() -> None:
    class Bent(JaxGated):
        def __call__(self, x: jax.Array) -> jax.Array:
            y = super().__call__(x)
            slope = y + 0.3 * jnp.sin(x)
            return slope + stop(y - slope)

    report = checked(Gated(), Bent(cut=""), X)
    assert not report.passed
    assert report.causes == ()
