"""Mistakes with positions: sinusoids, rotary embeddings, offsets."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from parity.causes.switches.positions import rotation
from tests.support.parity.named import Function, Tensor, cause_of, double, draw

B, H, T, D = 2, 2, 6, 8


def angles(period: float = 1e4, first: int = 0, width: int = D, power: float = 1.0) -> Tensor:
    frequency = period ** -(torch.arange(0, width, 2).double() * power / width)
    return (torch.arange(T).double() + first)[:, None] * frequency


def turned(x: Tensor, angle: Tensor, order: str = "halves") -> Tensor:
    if order == "halves":
        a, b = x.chunk(2, -1)
        return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), -1)
    a, b = x[..., ::2], x[..., 1::2]
    return torch.stack((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), -1).flatten(-2)


def by_rotating_half(x: Tensor) -> Tensor:
    """As in Llama by Hugging Face."""
    angle = torch.cat((angles(), angles()), -1)
    a, b = x.chunk(2, -1)
    return x * angle.cos() + torch.cat((-b, a), -1) * angle.sin()


def by_complex_numbers(x: Tensor) -> Tensor:
    """As in Llama by Meta."""
    z = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(z * torch.polar(torch.ones(T, D // 2).double(), angles())).flatten(-2)


ROTARY: dict[str, tuple[Callable[[Callable[..., Tensor], Tensor, str], Tensor], str]] = {
    "pairs": (lambda f, x, o: f(x, angles(), "halves" if o == "interleaved" else "interleaved"), "pairs"),
    "sign": (lambda f, x, o: f(x, -angles(), o), "other sign"),
    "period": (lambda f, x, o: f(x, angles(5e5), o), "period 500000"),
    "any period": (lambda f, x, o: f(x, angles(31234.5), o), "period -> 31234.5"),
    "one too far": (lambda f, x, o: f(x, angles(first=1), o), "positions +1"),
    "two too far": (lambda f, x, o: f(x, angles(first=2), o), "positions +2"),
    "none": (lambda f, x, o: x, "left out"),
    "exponent": (lambda f, x, o: f(x, angles(power=0.5), o), "period 100"),
    "half of the width": (
        lambda f, x, o: torch.cat((f(x[..., :4], angles(width=4), o), x[..., 4:]), -1),
        "only the first half",
    ),
}


@pytest.mark.parametrize("name", ROTARY)
@pytest.mark.parametrize(("right", "order"), [(by_rotating_half, "halves"), (by_complex_numbers, "interleaved")])
def test_a_wrong_rotary_embedding_is_named(right: Callable[[Tensor], Tensor], order: str, name: str) -> None:
    x = draw(B, H, T, D)
    assert torch.allclose(right(x), turned(x, angles(), order))
    wrong, text = ROTARY[name]
    cause = cause_of(Function(right), x, wrong(turned, x, order))
    assert cause is not None
    assert (cause.switch, text in cause.description) == ("rotary embedding", True), cause


def attention(x: Tensor) -> Tensor:
    q, k, v = x.chunk(3, -1)
    return F.scaled_dot_product_attention(by_rotating_half(q), by_rotating_half(k), v, is_causal=True)


def test_one_of_query_key_and_value_rotated_otherwise_is_named() -> None:
    x = draw(B, H, T, 3 * D)
    q, k, v = x.chunk(3, -1)
    r = by_rotating_half
    for parts, text in (
        ((r(q), k, v), "call 2 of 2"),
        ((q, r(k), v), "call 1 of 2"),
        ((r(q), r(k), r(v)), "on the values too"),
    ):
        wrong = F.scaled_dot_product_attention(*parts, is_causal=True)
        cause = cause_of(Function(attention), x, wrong)
        assert cause is not None
        assert (cause.switch, text in cause.description) == ("rotary embedding", True), cause


def test_rotations_are_told_from_other_functions() -> None:
    x = draw(B, T, D)
    found = rotation(x, turned(x, angles()))
    assert found is not None
    assert (found.order, found.axis) == ("halves", 1)
    assert rotation(x, -x) is None
    assert rotation(x, x.flip(-1)) is None
    assert rotation(x, draw(B, T, D, seed=1)) is None


# ---- tables ----


def table(period: float = 1e4, first: int = 0, order: str = "interleaved") -> Tensor:
    angle = angles(period, first)
    parts = (angle.sin(), angle.cos())
    return torch.stack(parts, -1).flatten(-2) if order == "interleaved" else torch.cat(parts, -1)


class Sinusoids(torch.nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.register_buffer("pe", table().to(dtype).double()[None])

    def forward(self, x: Tensor) -> Tensor:
        return x * D**0.5 + self.pe


TABLES = {
    "period": (table(1e3), "period 1000"),
    "halves": (table(order="halves"), "halves"),
    "from one": (table(first=1), "positions +1"),
    "from two": (table(first=2), "positions +2"),
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_another_table_of_sinusoids_is_named(name: str, dtype: torch.dtype) -> None:
    other, text = TABLES[name]
    x = draw(B, T, D)
    cause = cause_of(Sinusoids(dtype), x, x * D**0.5 + other.to(dtype).double())
    assert cause is not None
    assert (cause.switch, text in cause.description) == ("sinusoid", True), cause


def test_a_scale_before_the_positions_is_no_attention_scale() -> None:
    x = draw(B, T, D)
    cause = cause_of(Sinusoids(), x, x + table())
    assert cause is not None
    assert cause.switch == "scale"


class Learned(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.positions = torch.nn.Parameter(draw(1, 12, D, seed=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.positions[:, : x.shape[1]]


@pytest.mark.parametrize("first", [1, 2])
def test_learned_positions_that_begin_later_are_named(first: int) -> None:
    module, x = double(Learned()), draw(B, T, D)
    cause = cause_of(module, x, x + module.positions[:, first : T + first])
    assert cause is not None
    assert cause.switch == "position offset", cause
    # Without the table at all: no residual connection is missing.
    cause = cause_of(module, x, x)
    assert cause is not None
    assert cause.switch == "step left out", cause


class Indexed(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(draw(12, D, seed=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + F.embedding(torch.arange(x.shape[1]), self.weight)


@pytest.mark.parametrize("first", [1, 2])
def test_an_index_off_by_one_or_two_is_named(first: int) -> None:
    module, x = double(Indexed()), draw(B, T, D)
    cause = cause_of(module, x, x + module.weight[first : T + first])
    assert cause is not None
    assert cause.switch == "position offset", cause
