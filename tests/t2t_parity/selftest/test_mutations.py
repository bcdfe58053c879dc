"""The proof can fail: every mistake here is one that ports really make, and its module is named.

Either side may be the wrong one; mostly PyTorch's is changed, so that JAX compiles once for all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from parity import Gates, Report, Row, check
from t2t_jax.models.layers import GELU, Buffer
from t2t_torch.models import t2t_vit, token_performer, transformer_block
from tests.support.parity.pairs import carried, images, micro, resnet, twice

IMAGES = images(2, 3, 32, 32)
Models = tuple[torch.nn.Module, nnx.Module]


def forced(report: Report, name: str) -> list[Row]:
    return [row for row in report.rows if (row.name, row.mode, row.precision) == (name, "forced", "float64")]


def margin(report: Report, name: str) -> float:
    """How far beyond the gate the module's own arithmetic, or what it passes on, lies in float64."""
    rows = [row for row in report.rows if row.mode == "forced" and row.precision == "float64" and not row.passed]
    own = [row for row in rows if row.name == name]
    passed_on = [row for row in rows if row.kind == "calls" and row.name.rpartition(".")[0] == name]
    return max(row.error for row in (*own, *passed_on)) / Gates().f64


# ---- wrong layers of ours ----


class SwappedKeysAndQueries(token_performer.TokenPerformer):
    def prm_exp(self, x: torch.Tensor) -> torch.Tensor:
        return super().prm_exp(x)

    def single_attn(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.kqv(x).chunk(3, dim=-1)
        kp, qp = self.prm_exp(k), self.prm_exp(q)
        y = qp @ (kp.transpose(1, 2) @ v) / (qp @ kp.sum(dim=1).unsqueeze(-1) + self.epsilon)
        return v + self.dp(self.proj(y))


class WrongSkip(token_performer.TokenPerformer):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.single_attn(self.norm1(x))
        y = self.norm2(x)
        return y + self.mlp(y)


class ResidualFromTheNorm(transformer_block.Block):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        y = self.norm2(x)
        return y + self.drop_path(self.mlp(y))


class SwappedNorms(transformer_block.Block):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.drop_path(self.attn(self.norm2(x)))
        return x + self.drop_path(self.mlp(self.norm1(x)))


class PostNorm(transformer_block.Block):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm1(x + self.drop_path(self.attn(x)))
        return self.norm2(x + self.drop_path(self.mlp(x)))


class SoftmaxOverQueries(transformer_block.Attention):
    def attend(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attn = (q @ k.transpose(-2, -1) * self.scale).softmax(dim=-2)
        return (attn @ v).transpose(1, 2).flatten(2)


class HeadsLast(transformer_block.Attention):
    def attend(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, -1, self.num_heads)).permute(2, 0, 4, 1, 3)
        return transformer_block.dot_product_attention(q, k, v, self.scale, self.attn_drop)


class SpatialFirst(torch.nn.Unfold):
    """Features (kh, kw, C) in place of (C, kh, kw)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).unflatten(1, (x.shape[1], -1)).transpose(1, 2).flatten(1, 2)


class Columnwise(torch.nn.Unfold):
    """Height and width swapped: no shape tells, on a square."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.transpose(2, 3))


class NoBias(torch.nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.T


class Untransposed(torch.nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


class LeftOn(torch.nn.Dropout):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(x, 0.1, training=True)


class OneNaN(torch.nn.GELU):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        y[..., 0, 0] = float("nan")
        return y


class MeanPooled(t2t_vit.T2TViT):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.forward_features(x).mean(dim=1))


class NoPositions(t2t_vit.T2TViT):
    def forward_features(self, x: torch.Tensor, mix: object = None) -> torch.Tensor:
        x = self.tokens_to_token(x)
        x = self.pos_drop(torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1))
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def become(path: str, kind: type[torch.nn.Module]) -> Callable[[Any], None]:
    """The module at `path` turns into one of a wrong class, with the same weights."""
    return lambda model: setattr(model.get_submodule(path), "__class__", kind)


def change(path: str, attribute: str, value: Any) -> Callable[[Any], None]:
    return lambda model: setattr(model.get_submodule(path), attribute, value)


def shift_positions(model: Any) -> None:
    model.pos_embed.data = model.pos_embed.data.roll(1, dims=1)


MISTAKES: dict[str, tuple[Callable[[Any], None], str]] = {
    "tanh GELU": (change("blocks.1.mlp.act", "approximate", "tanh"), "blocks.1.mlp.act"),
    "LayerNorm eps 1e-6": (change("blocks.0.norm1", "eps", 1e-6), "blocks.0.norm1"),
    "last norm's eps": (change("norm", "eps", 1e-6), "norm"),
    "k and q swapped": (become("tokens_to_token.attention1", SwappedKeysAndQueries), "tokens_to_token.attention1"),
    "performer's eps": (change("tokens_to_token.attention2", "epsilon", 1e-6), "tokens_to_token.attention2"),
    "performer's residual": (become("tokens_to_token.attention2", WrongSkip), "tokens_to_token.attention2"),
    "attention scale": (change("blocks.1.attn", "scale", 64**-0.5), "blocks.1.attn"),
    "softmax axis": (become("blocks.0.attn", SoftmaxOverQueries), "blocks.0.attn"),
    "heads last": (become("blocks.0.attn", HeadsLast), "blocks.0.attn"),
    "missing bias": (become("blocks.0.attn.proj", NoBias), "blocks.0.attn.proj"),
    "square kernel not transposed": (become("blocks.1.attn.proj", Untransposed), "blocks.1.attn.proj"),
    "residual from the wrong tensor": (become("blocks.0", ResidualFromTheNorm), "blocks.0"),
    "swapped norms": (become("blocks.1", SwappedNorms), "blocks.1"),
    "post-norm": (become("blocks.0", PostNorm), "blocks.0"),
    "unfold order": (become("tokens_to_token.soft_split1", SpatialFirst), "tokens_to_token.soft_split1"),
    "height and width": (become("tokens_to_token.soft_split0", Columnwise), "tokens_to_token.soft_split0"),
    "dropout left on": (become("blocks.0.mlp.drop", LeftOn), "blocks.0.mlp.drop"),
    "NaN on one side": (become("blocks.1.mlp.act", OneNaN), "blocks.1.mlp.act"),
    "mean in place of class token": (become("", MeanPooled), "the model"),
    "no positions": (become("", NoPositions), "the model"),
    "positions off by one": (shift_positions, "the model"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_fails_and_its_module_is_named(mistake: str):
    torch_model, jax_model = micro()
    mutate, culprit = MISTAKES[mistake]
    mutate(torch_model)
    report = check(torch_model, jax_model, IMAGES, level="forward")
    assert not report.passed
    assert report.first_divergence == culprit
    assert margin(report, "" if culprit == "the model" else culprit) > 100
    assert not next(row for row in report.rows if row.kind == "output" and row.mode == "free").passed


def test_nan_on_one_side_is_said():
    torch_model, jax_model = micro()
    become("blocks.1.mlp.act", OneNaN)(torch_model)
    report = check(torch_model, jax_model, IMAGES, level="forward")
    assert {row.note for row in forced(report, "blocks.1.mlp.act") if row.kind == "layer"} == {
        "not finite on one side only"
    }


# ---- mistakes that only JAX makes ----


class ThroughFloat32(GELU):
    def __call__(self, x: jax.Array) -> jax.Array:
        return super().__call__(x.astype(jnp.float32)).astype(x.dtype)


class StaysFloat32(GELU):
    def __call__(self, x: jax.Array) -> jax.Array:
        return super().__call__(x.astype(jnp.float32))


class NoGradient(GELU):
    def __call__(self, x: jax.Array) -> jax.Array:
        return super().__call__(jax.lax.stop_gradient(x))


@pytest.mark.parametrize("kind", [ThroughFloat32, StaysFloat32])
def test_a_float32_leak_inside_a_float64_model_is_found(kind: type[GELU]):
    torch_model, jax_model = micro()
    jax_model.blocks[0].mlp.act = kind()
    report = check(torch_model, jax_model, IMAGES, level="forward")
    assert report.first_divergence == "blocks.0.mlp.act"
    assert margin(report, "blocks.0.mlp.act") > 100
    notes = {row.note for row in forced(report, "blocks.0.mlp.act")} - {""}
    assert notes == ({"float32 in a float64 run"} if kind is StaysFloat32 else set())


def test_a_gradient_that_stops_is_found_by_the_gradients_alone():
    torch_model, jax_model = micro()
    jax_model.blocks[1].mlp.act = NoGradient()
    report = check(torch_model, jax_model, IMAGES)
    assert {row.kind for row in report.failures} == {"gradient", "activation gradient", "derivative"}
    assert [row.name for row in report.failures if row.kind == "derivative"] == ["blocks.1.mlp.act"]
    assert report.first_divergence == "blocks.1.mlp.act"
    assert [(cause.module, cause.switch) for cause in report.causes] == [("blocks.1.mlp.act", "gradient cut")]
    assert "blocks.1.mlp.fc1.weight" in {row.name for row in report.failures}
    assert "blocks.1.mlp.fc2.weight" not in {row.name for row in report.failures}


def test_fast_variance_at_a_large_mean_is_found():
    torch_model, jax_model = twice()
    jax_model.norm.use_fast_variance = True
    inputs = images(3, 6), 1000 * np.ones((3, 6))
    torch_model.fc.bias.data += 100  # the norm sees a mean of 100,000
    jax_model.fc.bias[...] = jnp.asarray(torch_model.fc.bias.detach().numpy())
    report = check(torch_model, jax_model, inputs, level="forward")
    assert report.first_divergence == "norm"
    assert margin(report, "norm") > 100


@pytest.mark.parametrize(("attribute", "value"), [("epsilon", 1e-3), ("momentum", 0.1)])
def test_batch_norm_conventions(attribute: str, value: float):
    torch_model, jax_model = resnet()
    setattr(jax_model.bn2, attribute, value)
    report = check(torch_model, jax_model, images(2, 3, 16, 12), level="train")
    assert not report.passed
    failing = {row.name for row in report.failures}
    # bn1 is first where only training mode fails: flax keeps the biased variance, PyTorch the unbiased one.
    assert report.first_divergence == ("bn2" if attribute == "epsilon" else "bn1")
    named = {cause.switch for cause in report.causes if cause.module == "bn2"}
    both = {"batch norm momentum and running variance"}
    assert named == ({"epsilon", "running variance"} if attribute == "epsilon" else both)
    assert ("bn2.running_mean" in failing) == (attribute == "momentum")
    assert "bn1.running_mean" not in failing


# ---- weights ----


def test_one_bit_of_one_weight_fails():
    torch_model, jax_model = micro()
    with torch.no_grad():
        weight = torch_model.blocks[1].mlp.fc1.weight
        weight[3, 5] = torch.nextafter(weight[3, 5], torch.tensor(9.0))
    report = check(torch_model, jax_model, IMAGES, level="forward")
    wrong = [row for row in report.failures if row.kind == "weights"]
    assert [row.name for row in wrong] == ["blocks.1.mlp.fc1.weight"]


def test_trained_on_one_side_only_fails():
    torch_model, jax_model = micro()
    jax_model.pos_embed = nnx.Param(jax_model.pos_embed[...])
    jax_model.cls_token = Buffer(jax_model.cls_token[...])
    report = check(torch_model, jax_model, IMAGES, level="forward", same_trainable=True)
    assert {(row.name, row.note) for row in report.failures} == {
        (name, "trained on one side, frozen on the other") for name in ("pos_embed", "cls_token")
    }


# ---- forced runs ----


def test_a_wrong_layer_spoils_nothing_behind_it():
    torch_model, jax_model = micro()
    change("blocks.0.mlp.act", "approximate", "tanh")(torch_model)
    report = check(torch_model, jax_model, IMAGES, level="forward")
    double = [row for row in report.rows if row.precision == "float64" and not row.passed]
    assert [row.name for row in double if row.mode == "forced"] == ["blocks.0.mlp.act"]
    behind = {"blocks.0.mlp", "blocks.0", "blocks.1.attn", "blocks.1", "norm", "head", ""}
    assert behind <= {row.name for row in double if row.mode == "free"}
    assert not {"blocks.0.attn", "blocks.0.norm2"} & {row.name for row in double}


def test_two_wrong_layers_are_both_named():
    torch_model, jax_model = micro()
    change("blocks.0.norm1", "eps", 1e-6)(torch_model)
    become("blocks.1", ResidualFromTheNorm)(torch_model)
    report = check(torch_model, jax_model, IMAGES, level="forward")
    wrong = {r.name for r in report.rows if r.mode == "forced" and r.precision == "float64" and not r.passed}
    assert wrong == {"blocks.0.norm1", "blocks.1"}
    assert report.first_divergence == "blocks.0.norm1"


def test_what_a_module_passes_on_is_its_own_mistake():
    """The layers inside are right and get right inputs: only the row of what was passed on can tell."""

    class Doubled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.LayerNorm(6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(2 * x)

    class Single(nnx.Module):
        def __init__(self) -> None:
            self.norm = nnx.LayerNorm(6, epsilon=1e-5, use_fast_variance=False, rngs=nnx.Rngs(0))

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.norm(x)

    report = check(*carried(Doubled(), nnx.eval_shape(Single)), images(3, 6), level="forward")
    assert [(r.name, r.kind) for r in report.failures if r.mode == "forced"] == [("norm", "calls")]
    assert report.first_divergence == "the model"


# ---- the checker itself ----


def test_a_weakened_gate_lets_mistakes_through():
    """The gates are what catches: with the tolerances that are usual elsewhere, a wrong GELU passes."""
    torch_model, jax_model = micro()
    change("blocks.1.mlp.act", "approximate", "tanh")(torch_model)
    usual = Gates(1e-3, 1e-3, 3.0, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3)
    assert check(torch_model, jax_model, IMAGES, level="forward", gates=usual).passed
    assert not check(torch_model, jax_model, IMAGES, level="forward").passed
