"""float32 by design: right on both sides or the reference's alone; the port's alone is a leak."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from parity import check, torch_to_jax
from parity.precision.by_design import Design, inexact
from parity.precision.casts import Cast
from parity.report.report import Report
from t2t_parity.selftest.fast_check import fast_check
from tests.support.parity.float32_pairs import (
    TOKENS,
    WIDTH,
    JaxAttention,
    JaxConv,
    JaxModel,
    JaxNorm,
    JaxRope,
    JaxRotary,
    JaxStock,
    TorchBlock,
    TorchConv,
    TorchModel,
    TorchRotary,
    TorchStock,
    X,
    rope_table,
)


@pytest.fixture(autouse=True)
def as_users_write() -> Iterator[None]:
    with jax.numpy_rank_promotion("allow"):
        yield


IMAGES = np.random.RandomState(1).standard_normal((2, WIDTH, 4, 4))


def drawn(torch_model: torch.nn.Module, jax_model: nnx.Module) -> tuple[torch.nn.Module, nnx.Module]:
    """The pair with weights that hide nothing."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for param in torch_model.parameters():
            param.copy_(0.5 * torch.randn(param.shape, generator=generator))
    torch_to_jax(torch_model, jax_model)
    return torch_model, jax_model


def quickly(torch_model: torch.nn.Module, jax_model: nnx.Module, inputs: np.ndarray = X, **options: Any) -> Report:
    return fast_check(*drawn(torch_model, jax_model), inputs, **options)


def test_casts_on_both_sides_hold_at_every_level() -> None:
    report = check(*drawn(TorchModel(), JaxModel()), X, level="train")
    assert report.passed, report
    (note,) = report.notes
    assert note.startswith("float32 by design in: block.norm (float32_pairs.py:")
    assert "block.attn (float32_pairs.py:" in note


def test_stock_attention_of_both_frameworks_holds_at_every_level() -> None:
    report = check(*drawn(TorchStock(), JaxStock()), X, level="train")
    assert report.passed, report
    (note,) = report.notes
    assert note.startswith("float32 by design in: attn (float32_pairs.py:")


RIGHT: dict[str, tuple[Callable[[], Any], Callable[[], Any], np.ndarray]] = {
    "the reference alone": (TorchModel, lambda: JaxModel(JaxNorm(None), JaxAttention(None)), X),
    "wider than the reference": (lambda: TorchModel(TorchBlock(torch.bfloat16)), JaxModel, X),
    "bfloat16": (lambda: TorchModel(TorchBlock(torch.bfloat16)), lambda: JaxModel(JaxNorm(jnp.bfloat16)), X),
    "a group norm": (TorchConv, JaxConv, IMAGES),
    "rotary embeddings computed in the call": (lambda: TorchRotary(held=False), lambda: JaxRotary(JaxRope()), X),
}


@pytest.mark.parametrize("name", RIGHT)
def test_right_ports(name: str) -> None:
    torch_model, jax_model, inputs = RIGHT[name]
    report = quickly(torch_model(), jax_model(), inputs, backward=True)
    assert report.passed, report
    assert any("by design in" in note for note in report.notes) or name.startswith("rotary")


def test_bfloat16_by_design_is_left_out_of_the_float32_run_too() -> None:
    report = check(*drawn(TorchModel(TorchBlock(torch.bfloat16)), JaxModel(JaxNorm(jnp.bfloat16))), X, level="forward")
    assert report.passed, report
    assert any(note.startswith("bfloat16 by design in: block.norm") for note in report.notes)


WRONG: dict[str, tuple[Callable[[], Any], Callable[[], Any], str, str | None]] = {
    "epsilon in the upcast norm": (TorchModel, lambda: JaxModel(JaxNorm(epsilon=1e-5)), "block.norm", "epsilon"),
    "scale before the softmax": (
        TorchModel,
        lambda: JaxModel(attn=JaxAttention(scale=WIDTH**-0.5)),
        "block.attn",
        "attention scale",
    ),
    "softmax in float32 in JAX alone": (
        lambda: TorchModel(TorchBlock(None, None)),
        lambda: JaxModel(JaxNorm(None)),
        "block.attn",
        "float32 leak",
    ),
    "the same beside a norm by design": (
        lambda: TorchModel(TorchBlock(softmax_type=None)),
        JaxModel,
        "block.attn",
        "float32 leak",
    ),
    "bfloat16 where the reference has float32": (
        TorchModel,
        lambda: JaxModel(JaxNorm(jnp.bfloat16)),
        "block.norm",
        "bfloat16 leak",
    ),
    "epsilon of a group norm": (TorchConv, lambda: JaxConv(1e-4), "norm", "epsilon"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_ports(name: str) -> None:
    torch_model, jax_model, module, switch = WRONG[name]
    report = quickly(torch_model(), jax_model(), IMAGES if "group" in name else X)
    assert report.first_divergence == module
    assert [(cause.module, cause.switch) for cause in report.causes] == [(module, switch)]


def test_the_line_of_a_leak_is_named() -> None:
    report = quickly(TorchModel(TorchBlock(None, None)), JaxModel(JaxNorm(None)))
    (leak,) = [row for row in report.rows if row.kind == "leak"]
    assert leak.name == "block.attn"
    assert "JAX alone casts to float32 at float32_pairs.py:" in leak.note
    assert "float32_pairs.py:" in report.causes[0].description


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize(
    "rope",
    [
        lambda: JaxRope(theta=10010.0),
        lambda: JaxRope(rope_table(theta=10100.0)),
        lambda: JaxRope(rope_table(first=1)),
        lambda: JaxRope(interleaved=True),
        lambda: JaxRope((rope_table()[1], rope_table()[0])),
    ],
    ids=["theta", "theta of a table", "off by one", "interleaved", "cosine and sine exchanged"],
)
def test_a_gate_for_tables_opens_no_hole(held: bool, rope: Callable[[], JaxRope]) -> None:
    report = quickly(TorchRotary(held=held), JaxRotary(rope()))
    assert report.first_divergence == "rope"


@pytest.mark.parametrize("held", [False, True])
def test_tables_that_differ_in_the_last_digit_have_float32s_gate_and_nothing_else_has(held: bool) -> None:
    pair = drawn(TorchRotary(held=held), JaxRotary(JaxRope(rope_table())))
    report = check(*pair, X)
    assert report.passed, report
    assert any("float32 tables that are not the same to the last digit in: rope" in note for note in report.notes)
    rows = [row for row in report.rows if row.mode == "forced" and row.precision == "float64"]
    forced = {row.name: row.gate for row in rows if row.kind in ("layer", "output")}
    assert forced["rope"] == (WIDTH + 4) * 2.0**-24  # the longest axis has WIDTH numbers
    assert forced["norm"] == forced["head"] == 1e-13
    derivatives = {row.name: row.gate for row in rows if row.kind == "derivative"}
    assert derivatives["norm"] == derivatives["head"] == 1e-12


def test_a_mistake_behind_a_table_is_seen_though_it_is_smaller_than_the_tables_gate() -> None:
    report = quickly(TorchRotary(), JaxRotary(JaxRope(rope_table()), epsilon=1.1e-5))
    assert report.first_divergence == "norm"
    assert not any("leak" in cause.switch for cause in report.causes)  # nothing there is computed in float32


class TorchTable(torch.nn.Module):
    """Holds the very numbers that the port holds, and no weights."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = torch.nn.Linear(WIDTH, WIDTH)
        self.table = torch.from_numpy(np.array(rope_table()[0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x) + self.table[: x.shape[1]]


class JaxTable(nnx.Module):
    def __init__(self) -> None:
        self.proj, self.table = nnx.Linear(WIDTH, WIDTH, rngs=nnx.Rngs(0)), rope_table()[0]

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.proj(x) + self.table[: x.shape[1]]


def test_equal_tables_keep_float64s_gate() -> None:
    report = quickly(TorchTable(), JaxTable())
    assert report.passed, report
    assert all(row.gate <= 1e-13 for row in report.rows if row.kind in ("layer", "output"))


class TorchLogits(TorchModel):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).float()


class JaxLogits(JaxModel):
    def __call__(self, x: jax.Array) -> jax.Array:
        return super().__call__(x).astype(jnp.float32)


def test_an_output_in_float32() -> None:
    assert quickly(TorchLogits(), JaxLogits()).passed
    alone = quickly(TorchModel(), JaxLogits())
    assert not alone.passed
    assert any("JAX alone casts to float32" in row.note for row in alone.rows if row.name == "the model")


def test_one_cast_of_the_output_excuses_no_block() -> None:
    paths = {"": "", "block": "block", "block.attn": "block.attn", "head": "head"}
    design = Design(ours=(Cast("", "float32"),), partners=paths)
    assert not design.allows(Cast("block", "float32"))
    assert not design.allows(Cast("block.attn", "float32"))
    assert design.allows(Cast("", "float32"))


def test_numbers_made_in_float32_excuse_no_cast() -> None:
    design = Design(ours=(Cast("a", "float32", made=True),), partners={"": "", "a": "a"})
    assert not design.allows(Cast("a", "float32"))
    assert design.allows(Cast("a", "float32", made=True))


def test_what_a_library_casts_to_bfloat16_was_asked_of_it() -> None:
    assert Design().allows(Cast("a", "float32", library=True))
    assert not Design().allows(Cast("a", "bfloat16", library=True))


def test_masks_and_counts_are_no_tables() -> None:
    assert not inexact(np.array([0.0, 1.0, 1024.0, -np.inf, np.finfo(np.float32).min]))
    assert inexact(np.array([1.0, np.float32(0.1)]))
    assert inexact(np.cos(np.arange(TOKENS)).astype(np.float32))
