"""The stage of a check: a row for every equal module and for every mistake, its cause, and no false alarm."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax import lax

import parity
from parity.measure.gates import Row
from parity.trace.stage import Traced
from tests.support.parity.traced import (
    CLASSES,
    DEPTH,
    DIM,
    HEADS,
    Sides,
    Transformer,
    block,
    line_of,
    linear,
    normed,
    planted,
    tokens,
    transformer,
    zero_linear,
    zeros,
)

ROWS = {
    "eps": ("blocks.1.norm1", "layer"),
    "scale": ("blocks.1.attn.proj", "calls"),
    "softmax": ("blocks.1.attn.proj", "calls"),
    "heads": ("blocks.1.attn.proj", "calls"),
    "residual": ("blocks.1.norm2", "calls"),
    "gelu": ("blocks.1.fc2", "calls"),
}
"""Mistake in block 1 -> name and kind of the failing row: what a module returns, or what it is called with."""

CAUSES = {
    "eps": "eps 1e-05 -> 1e-06",
    "scale": "0.5 -> 8^-0.5",
    "softmax": "softmax: axis",
    "gelu": "gelu -> tanh gelu",
}


def failing(found: Traced) -> list[Row]:
    return [row for row in found.rows if not row.passed]


def test_a_right_port_has_a_passing_row_for_every_module():
    sides = planted()
    found = sides.stage(differ=False)
    modules = {name for name, _ in sides.ours.model.named_modules()} - {"", "blocks"}
    assert {row.name for row in found.rows} == modules
    assert all((row.kind, row.mode, row.precision) == ("layer", "free", "float64") for row in found.rows)
    assert max(row.error for row in found.rows) < 1e-13
    assert {name for name, _ in found.layers} == modules
    assert (found.absent, found.causes, found.notes, found.located) == ((), (), (), False)


def test_a_right_port_that_is_searched_for_differences_has_none():
    found = planted().stage(differ=True)
    assert failing(found) == []
    assert (found.causes, found.notes) == ((), ())


@pytest.mark.parametrize("wrong", ROWS)
def test_a_mistake_is_located_to_the_module_and_the_line(wrong: str):
    found = planted(block1=wrong).stage()
    (row,) = failing(found)
    assert (row.name, row.kind) == ROWS[wrong]
    assert row.mode == "forced"
    assert "traced.py" in row.note
    if wrong != "residual":
        assert line_of(wrong) in row.note
    assert found.located
    equal = {row.name for row in found.rows if row.passed}
    assert "blocks.0.attn" in equal
    assert "blocks.2.norm1" not in equal
    assert "blocks.2.norm1 of PyTorch" in found.absent
    if wrong in CAUSES:
        assert CAUSES[wrong] in found.causes[0].description


def test_two_mistakes_in_two_blocks():
    found = planted(block0="gelu", block2="eps").stage()
    assert [(row.name, row.kind) for row in failing(found)] == [("blocks.0.fc2", "calls"), ("blocks.2.norm1", "layer")]
    assert [cause.description.split(" (")[0] for cause in found.causes] == [
        "gelu -> tanh gelu",
        "layer_norm: eps 1e-05 -> 1e-06",
    ]


def test_three_mistakes():
    found = planted(block0="softmax", block1="heads", block2="gelu").stage()
    assert [row.name.rpartition(".")[0][:8] for row in failing(found)] == ["blocks.0", "blocks.1", "blocks.2"]


def test_the_rows_of_the_models_outputs():
    """A model whose mistakes are located is not wrong by itself: its own forced row is left out."""
    found = planted(block1="gelu").stage()
    free, forced = (Row("", "output", mode, "float64", 1.0, 1e-9) for mode in ("free", "forced"))
    assert found.merged([free, forced]) == [*found.rows, free]
    right = planted().stage(differ=False)
    assert right.merged([free, forced]) == [*right.rows, free, forced]


# ---- programs of another structure ----


def assert_equal(sides: Sides, modules: set[str] | None = None) -> Traced:
    """No row fails, also where differences are searched, and the modules were compared, all of them by default."""
    for differ in (False, True):
        found = sides.stage(differ=differ)
        assert failing(found) == []
        assert (found.causes, found.notes) == ((), ())
        wanted = {name for name, _ in sides.ours.model.named_modules()} - {"", "blocks"} if modules is None else modules
        assert {row.name for row in found.rows} >= wanted
    return found


def scrambled(params: Any, x: jax.Array) -> jax.Array:
    """The transformer with other layouts: channels first, tokens before the batch, heads in front."""
    x = x.transpose(1, 2, 0)  # N C B
    for i in range(DEPTH):
        p = params["blocks"][str(i)]
        y = normed(p["norm1"], x.transpose(2, 0, 1), "")
        q, k, v = jnp.split(
            jnp.einsum("bnc,cd->dnb", y, p["attn"]["qkv"]["w"]) + p["attn"]["qkv"]["b"][:, None, None], 3
        )
        q, k, v = (z.reshape(HEADS, DIM // HEADS, *z.shape[1:]) for z in (q, k, v))  # H D N B
        logits = jnp.einsum("hdnb,hdmb->hbmn", q, k) * (DIM // HEADS) ** -0.5
        weights = jax.nn.softmax(logits, axis=2)
        y = jnp.einsum("hbmn,hdmb->nhdb", weights, v).reshape(x.shape)
        x = x + jnp.einsum("ncb,cd->ndb", y, p["attn"]["proj"]["w"]) + p["attn"]["proj"]["b"][:, None]
        y = linear(p["fc1"], normed(p["norm2"], x.transpose(0, 2, 1), ""))
        x = x + linear(p["fc2"], jax.nn.gelu(y, approximate=False)).transpose(0, 2, 1)
    return linear(params["head"], x.mean(0).T)


def test_scrambled_layouts():
    found = Sides.of(Transformer(), scrambled, zeros(), tokens()).stage(differ=True)
    assert failing(found) == []
    assert (found.causes, found.notes) == ((), ())
    assert {f"blocks.{i}.{name}" for i in range(DEPTH) for name in ("norm1", "attn.qkv", "norm2", "fc1", "fc2")} <= {
        row.name for row in found.rows
    }


def projections(params: Any, x: jax.Array) -> jax.Array:
    """The transformer with q, k and v computed one by one from the columns of one matrix."""

    def attention(p: Any, x: jax.Array, wrong: str) -> jax.Array:
        parts = zip(jnp.split(p["qkv"]["w"], 3, axis=1), jnp.split(p["qkv"]["b"], 3), strict=True)
        q, k, v = ((x @ w + b).reshape(*x.shape[:2], HEADS, DIM // HEADS).transpose(0, 2, 1, 3) for w, b in parts)
        y = jax.nn.softmax(q @ k.mT * (DIM // HEADS) ** -0.5) @ v
        return linear(p["proj"], y.transpose(0, 2, 1, 3).reshape(x.shape))

    for i in range(DEPTH):
        p = params["blocks"][str(i)]
        x = x + attention(p["attn"], normed(p["norm1"], x, ""), "")
        x = x + linear(p["fc2"], jax.nn.gelu(linear(p["fc1"], normed(p["norm2"], x, "")), approximate=False))
    return linear(params["head"], x.mean(1))


def test_projections_that_jax_computes_one_by_one():
    sides = Sides.of(Transformer(), projections, zeros(), tokens())
    found = sides.stage(differ=True)
    assert failing(found) == []
    assert {name.split(" ")[0].rsplit(".")[-1] for name in found.absent} == {"qkv"}


class Separate(torch.nn.Module):
    """Attention with three projections, for a port that has them in one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (torch.nn.Linear(DIM, DIM) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.q(x) @ self.k(x).mT).softmax(-1) @ self.v(x)


def fused(p: Any, x: jax.Array) -> jax.Array:
    names = ("q", "k", "v")
    w, b = (jnp.concatenate([p[name][key] for name in names], -1) for key in ("w", "b"))
    q, k, v = jnp.split(x @ w + b, 3, -1)
    return jax.nn.softmax(q @ k.mT) @ v


def test_projections_that_jax_fuses():
    assert_equal(Sides.of(Separate(), fused, {name: zero_linear(DIM, DIM) for name in ("q", "k", "v")}, tokens()))


def stacked(wrong: str = "") -> Callable[..., jax.Array]:
    def forward(params: Any, x: jax.Array) -> jax.Array:
        blocks = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params["blocks"][str(i)] for i in range(DEPTH)))
        x, _ = lax.scan(lambda x, p: (block(p, x, wrong), None), x, blocks)
        return linear(params["head"], x.mean(1))

    return forward


def test_stacked_layers_in_a_scan():
    assert_equal(Sides.of(Transformer(), stacked(), zeros(), tokens()))


def test_a_mistake_in_a_scan_is_located_in_every_step():
    found = Sides.of(Transformer(), stacked("gelu"), zeros(), tokens()).stage()
    assert [row.name for row in failing(found)] == [f"blocks.{i}.fc2" for i in range(DEPTH)]


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint, jax.vmap])
def test_wrapped_programs(wrap: Callable[..., Any]):
    forward = transformer({})
    function = jax.vmap(lambda p, x: forward(p, x[None])[0], (None, 0)) if wrap is jax.vmap else wrap(forward)
    assert_equal(Sides.of(Transformer(), function, zeros(), tokens()))


def test_a_mistake_in_a_block_that_is_compiled_by_itself_has_its_line():
    compiled = jax.jit(lambda p, x: block(p, x, "scale"))

    def forward(params: Any, x: jax.Array) -> jax.Array:
        for i in range(DEPTH):
            x = compiled(params["blocks"][str(i)], x)
        return linear(params["head"], x.mean(1))

    rows = failing(Sides.of(Transformer(), forward, zeros(), tokens()).stage())
    assert [row.name for row in rows] == [f"blocks.{i}.attn.proj" for i in range(DEPTH)]
    assert all(f"in JAX {line_of('scale')}" in row.note for row in rows)


class Residual(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = torch.nn.Linear(DIM, 2 * DIM), torch.nn.Linear(2 * DIM, DIM)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.fc2(torch.nn.functional.gelu(self.fc1(x)))


def test_the_cause_is_named_where_jax_has_no_output_of_the_module_that_is_called():
    def function(p: Any, x: jax.Array) -> jax.Array:
        y = jax.nn.gelu(jnp.einsum("bnc,cd->dnb", x, p["fc1"]["w"]) + p["fc1"]["b"][:, None, None])
        return x + jnp.einsum("dnb,dc->bnc", y, p["fc2"]["w"]) + p["fc2"]["b"]

    params = {"fc1": zero_linear(DIM, 2 * DIM), "fc2": zero_linear(2 * DIM, DIM)}
    found = Sides.of(Residual(), function, params, tokens()).stage()
    assert [(row.name, row.kind) for row in failing(found)] == [("fc2", "calls")]
    assert [cause.description.split(" (")[0] for cause in found.causes] == ["gelu -> tanh gelu"]


# ---- inputs and outputs ----


class Many(torch.nn.Module):
    """Several outputs, two inputs, one of them integers."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.fc = torch.nn.Embedding(7, DIM), torch.nn.Linear(DIM, CLASSES)

    def forward(self, ids: torch.Tensor, x: torch.Tensor) -> Any:
        x = torch.tanh(self.emb(ids) + x)
        return {"logits": self.fc(x), "hidden": x, "best": self.fc(x).argmax(-1)}


def many(wrong: bool) -> Callable[..., Any]:
    def function(p: Any, ids: jax.Array, x: jax.Array) -> Any:
        x = p["emb"]["w"][ids] + x
        x = jnp.sinh(x) if wrong else jnp.tanh(x)
        logits = linear(p["fc"], x)
        return {"logits": logits, "hidden": x, "best": logits.argmax(-1)}

    return function


def many_sides(*, wrong: bool) -> Sides:
    params = {"emb": {"w": np.zeros((7, DIM))}, "fc": zero_linear(DIM, CLASSES)}
    return Sides.of(Many(), many(wrong), params, np.array([[0, 3, 6, 3, 1], [1, 2, 5, 5, 0]]), tokens())


def test_several_outputs_and_integers():
    assert_equal(many_sides(wrong=False), {"emb", "fc"})


def test_a_mistake_before_several_outputs():
    found = many_sides(wrong=True).stage()
    assert all("tanh" in row.note for row in failing(found))
    assert failing(found)


# ---- values that are equal by themselves ----


def test_layers_of_equal_weights_are_no_false_alarm():
    assert_equal(Sides.of(Transformer(), transformer({}), zeros(), tokens(), tied=True))


def test_a_mistake_among_layers_of_equal_weights_is_located():
    found = Sides.of(Transformer(), transformer({1: "gelu"}), zeros(), tokens(), tied=True).stage()
    assert [row.name for row in failing(found)] == ["blocks.1.fc2"]


class Twins(torch.nn.Module):
    """Two layers of equal weights on the same input: nothing tells their values apart."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Linear(DIM, DIM), torch.nn.Linear(DIM, DIM)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.a(x)) * self.b(x)


def test_twins_are_no_false_alarm():
    params = {"a": zero_linear(DIM, DIM), "b": zero_linear(DIM, DIM)}
    function = lambda p, x: jnp.tanh(linear(p["a"], x)) * linear(p["b"], x)  # noqa: E731
    assert_equal(Sides.of(Twins(), function, params, tokens(), tied=True))
    swapped = lambda p, x: jnp.tanh(linear(p["b"], x)) * linear(p["a"], x)  # noqa: E731
    assert_equal(Sides.of(Twins(), swapped, params, tokens(), tied=True))


def test_a_module_that_is_called_twice():
    class Shared(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = torch.nn.Linear(DIM, DIM)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(torch.tanh(self.fc(x)))

    for act, rows in ((jnp.tanh, []), (jnp.sinh, ["fc#2"])):
        function = lambda p, x, act=act: linear(p["fc"], act(linear(p["fc"], x)))  # noqa: E731
        found = Sides.of(Shared(), function, {"fc": zero_linear(DIM, DIM)}, tokens()).stage(differ=bool(rows))
        assert [row.name for row in failing(found)] == rows
        assert "fc" in {row.name for row in found.rows}


# ---- in a check ----


def test_a_check_of_a_function():
    model = Transformer()
    parity.randomize(model)
    for wrong, passed in ({}, True), ({1: "gelu"}, False):
        jax_model = parity.function(transformer(wrong), zeros())
        parity.torch_to_jax(model, jax_model)
        report = parity.check(model, jax_model, tokens(), level="forward")
        assert report.passed == passed
        assert {"blocks.0.attn.qkv", "blocks.0.fc1"} <= {name for name, _ in report.layers}
    first = next(row for row in report.rows if not row.passed and row.mode == "forced")
    assert (first.name, first.kind) == ("blocks.1.fc2", "calls")
    assert line_of("gelu") in first.note


def test_models_that_cannot_be_followed_are_a_note(monkeypatch: pytest.MonkeyPatch):
    sides = planted()

    def refused() -> contextlib.AbstractContextManager[Any]:
        raise RuntimeError("no tracing here\nsecond line")

    monkeypatch.setattr(sides.ours, "wide", refused)
    found = sides.stage()
    assert found.rows == ()
    assert found.notes == (
        "no module was compared, since the models cannot be followed step by step (no tracing here)",
    )


def test_a_defect_of_the_engine_is_told_from_models_that_cannot_be_followed(monkeypatch: pytest.MonkeyPatch):
    """It raises in this package; the verdict by outputs and gradients stands."""
    model = Transformer()
    parity.randomize(model)
    jax_model = parity.function(transformer({}), zeros())
    parity.torch_to_jax(model, jax_model)
    monkeypatch.setattr("parity.trace.values.match.Fingerprint", None)
    with pytest.warns(
        RuntimeWarning, match=r"a defect of parity, not of the models: \w+ at trace/values/match\.py:\d+"
    ):
        report = parity.check(model, jax_model, tokens(), level="forward")
    assert report.passed
    assert any("defect of parity" in note for note in report.notes)
