"""Mistakes with attention: its mask, scale and heads; fused, by `torch.nn.MultiheadAttention`, or written out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.support.parity.named import Function, Tensor, cause_of, double, draw

B, H, T, D = 2, 2, 5, 4
X = draw(B, H, T, 3 * D)
LENGTHS = torch.tensor([5, 3])
PADDING = torch.arange(T) >= LENGTHS[:, None]
"""True where a token is padding, (B, T)."""
HIDDEN = PADDING[:, None, None, :].expand(B, 1, T, T)


def hides(diagonal: int) -> Tensor:
    return torch.ones(T, T, dtype=torch.bool).triu(diagonal)


def qkv(x: Tensor) -> Any:
    return x.chunk(3, -1)


def scores(x: Tensor) -> Tensor:
    q, k, _ = qkv(x)
    return q @ k.mT / math.sqrt(D)


def weighted(x: Tensor, attention: Tensor) -> Tensor:
    return attention @ qkv(x)[2]


def hiding(x: Tensor, hidden: Tensor, fill: float = -torch.inf) -> Tensor:
    return weighted(x, scores(x).masked_fill(hidden, fill).softmax(-1))


def fused_causal(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(*qkv(x), is_causal=True)


def fused_padded(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(*qkv(x), attn_mask=~HIDDEN)


def fused_both(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(*qkv(x), attn_mask=~(HIDDEN | hides(1)))


def written_causal(x: Tensor) -> Tensor:
    q, k, v = x.chunk(3, -1)
    att = (q @ k.mT) * D**-0.5
    att = att.masked_fill(torch.ones(T, T).tril() == 0, float("-inf"))
    return att.softmax(-1) @ v


def written_padded(x: Tensor) -> Tensor:
    q, k, v = x.chunk(3, -1)
    bias = torch.zeros(B, 1, 1, T, dtype=x.dtype).masked_fill(PADDING[:, None, None], torch.finfo(x.dtype).min)
    att = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(D) + bias
    return torch.matmul(F.softmax(att, dim=-1), v)


def written_both(x: Tensor) -> Tensor:
    q, k, v = x.chunk(3, -1)
    att = (q @ k.mT) * D**-0.5
    att = torch.where(HIDDEN | hides(1), -1e9, att)
    return att.softmax(-1) @ v


CAUSAL: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "one token ahead": (lambda x: hiding(x, hides(2)), "one token ahead seen"),
    "without itself": (lambda x: hiding(x, hides(0), -1e30), "the token itself hidden"),
    "inverted": (lambda x: hiding(x, ~hides(1)), "inverted"),
    "transposed": (lambda x: hiding(x, hides(1).mT), "transposed"),
    "forgotten": (lambda x: weighted(x, scores(x).softmax(-1)), "without its mask"),
    "after the softmax": (lambda x: weighted(x, scores(x).softmax(-1) * ~hides(1)), "after it"),
    "times": (lambda x: weighted(x, (scores(x) * ~hides(1)).softmax(-1)), "multiplied"),
    "zero and one": (lambda x: weighted(x, (scores(x) + (~hides(1)).double()).softmax(-1)), "0 and 1"),
    "filled with zero": (lambda x: hiding(x, hides(1), 0.0), "-inf"),
    "filled with a tiny number": (lambda x: hiding(x, hides(1), 1e-9), "-inf -> 1e-09"),
}


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("right", [fused_causal, written_causal])
def test_a_wrong_causal_mask_is_named(right: Callable[[Tensor], Tensor], name: str) -> None:
    wrong, text = CAUSAL[name]
    cause = cause_of(Function(right), X, wrong(X))
    assert cause is not None
    assert cause.switch == "attention mask", cause
    assert text in cause.description
    assert cause.error_after <= 1e-13


PADDED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "ignored": (lambda x: weighted(x, scores(x).softmax(-1)), "without its mask"),
    "inverted": (lambda x: hiding(x, ~HIDDEN, -1e30), "inverted"),
    "queries": (lambda x: hiding(x, HIDDEN.mT, -1e30), "query axis"),
    "times": (lambda x: weighted(x, (scores(x) * ~HIDDEN).softmax(-1)), "multiplied"),
    "another sample's": (lambda x: hiding(x, HIDDEN.flip(0)), "sample"),
}


@pytest.mark.parametrize("name", PADDED)
@pytest.mark.parametrize("right", [fused_padded, written_padded])
def test_a_wrong_padding_mask_is_named(right: Callable[[Tensor], Tensor], name: str) -> None:
    wrong, text = PADDED[name]
    cause = cause_of(Function(right), X, wrong(X))
    assert cause is not None
    assert (cause.switch, text in cause.description) == ("attention mask", True), cause


BOTH: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "no padding": (lambda x: hiding(x, hides(1)), "padding ignored"),
    "no causality": (lambda x: hiding(x, HIDDEN), "causality ignored"),
    "padding on the queries": (lambda x: hiding(x, hides(1) | HIDDEN.mT, -1e30), "padding on the query axis"),
    "one ahead": (lambda x: hiding(x, hides(2) | HIDDEN), "one token ahead"),
}


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("right", [fused_both, written_both])
def test_causality_and_padding_are_told_apart(right: Callable[[Tensor], Tensor], name: str) -> None:
    wrong, text = BOTH[name]
    cause = cause_of(Function(right), X, wrong(X))
    assert cause is not None
    assert (cause.switch, text in cause.description) == ("attention mask", True), cause


def test_a_window_that_is_one_too_wide_is_named() -> None:
    def window(width: int) -> Tensor:
        return hides(1) | torch.ones(T, T, dtype=torch.bool).tril(-width)

    right = Function(lambda x: F.scaled_dot_product_attention(*qkv(x), attn_mask=~window(2)))
    cause = cause_of(right, X, hiding(X, window(3)))
    assert cause is not None
    assert "window of 2 keys -> 3" in cause.description


SCALES = {"none": 1.0, "by the width": 1 / D, "twice": 1 / D, "by another width": (3 * D) ** -0.5, "any": 0.313}


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("right", [fused_causal, written_causal])
def test_another_scale_is_named_also_beside_a_mask(right: Callable[[Tensor], Tensor], name: str) -> None:
    q, k, v = qkv(X)
    wrong = (q @ k.mT * SCALES[name]).masked_fill(hides(1), -torch.inf).softmax(-1) @ v
    cause = cause_of(Function(right), X, wrong)
    assert cause is not None
    assert cause.switch == "attention scale", cause


def test_a_softmax_in_float32_is_told_by_its_numbers_not_by_its_size() -> None:
    x = draw(2, 2, 16, 3 * D)
    q, k, v = qkv(x)
    right = Function(lambda x: F.scaled_dot_product_attention(*qkv(x)))
    s = jnp.asarray((q @ k.mT / math.sqrt(D)).float().numpy())
    e = jnp.exp(s - s.max(-1, keepdims=True))
    attention = np.array(e / e.sum(-1, keepdims=True)).astype(np.float64)
    cause = cause_of(right, x, torch.from_numpy(attention) @ v)
    assert cause is not None
    assert cause.switch == "float32 leak", cause
    # The same size, but in no relation to the roundings of float32: no cause.
    wanted = right(x)
    noise = draw(*wanted.shape, seed=5)
    noise *= cause.error_before * wanted.norm() / noise.norm()
    found = cause_of(right, x, wanted + noise * wanted.abs().sqrt().sin())
    assert found is None or "something inside" in found.description


def test_no_mistake_of_ordinary_size_is_a_rounding() -> None:
    for wrong in (lambda x: hiding(x, hides(3)), lambda x: weighted(x, scores(x).sigmoid())):
        cause = cause_of(Function(fused_causal), X, wrong(X))
        assert cause is None or "leak" not in cause.switch


# ---- torch.nn.MultiheadAttention ----


class SelfAttention(torch.nn.Module):
    def __init__(self, *, weights: bool, causal: bool = False) -> None:
        super().__init__()
        self.mha = torch.nn.MultiheadAttention(8, 2, batch_first=True)
        self.weights, self.causal = weights, causal

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(T, T, dtype=torch.bool).triu(1) if self.causal else None
        return self.mha(x, x, x, need_weights=self.weights, attn_mask=mask, key_padding_mask=PADDING)[0]


def own_attention(module: Any, x: Tensor, hidden: Tensor | None, scale: float = 0.5, order=(0, 1, 2)) -> Tensor:
    mha = module.mha
    parts = F.linear(x, mha.in_proj_weight, mha.in_proj_bias).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    q, k, v = (parts[i] for i in order)
    s = q @ k.mT * scale
    y = (s if hidden is None else s.masked_fill(hidden, -torch.inf)).softmax(-1) @ v
    return mha.out_proj(y.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("weights", [False, True])
def test_attention_of_torch_s_own_module_is_looked_into(weights: bool) -> None:
    module = double(SelfAttention(weights=weights))
    x = draw(B, T, 8)
    assert torch.allclose(own_attention(module, x, HIDDEN), module(x), rtol=1e-12)
    for wrong, switch in (
        (own_attention(module, x, None), "attention mask"),
        (own_attention(module, x, HIDDEN | hides(1)), "attention mask"),
        (own_attention(module, x, HIDDEN, scale=8**-0.5), "attention scale"),
        (own_attention(module, x, HIDDEN, order=(1, 0, 2)), "q/k/v order"),
    ):
        cause = cause_of(module, x, wrong)
        if switch == "attention mask" and cause is None:
            continue
        assert cause is not None
        assert cause.switch == switch, cause


def test_a_mask_with_padding_and_causality_in_torch_s_own_module() -> None:
    module = double(SelfAttention(weights=False, causal=True))
    x = draw(B, T, 8)
    cause = cause_of(module, x, own_attention(module, x, HIDDEN))
    assert cause is not None
    assert "causality ignored" in cause.description


# ---- grouped queries ----


def grouped(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Four heads of queries, two of keys and values."""
    return x, x[:, :2] * 0.5, x[:, 2:].cos()


def by_interface(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(*grouped(x), is_causal=True, enable_gqa=True)


def by_interleave(x: Tensor) -> Tensor:
    q, k, v = grouped(x)
    k, v = k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def by_expansion(x: Tensor) -> Tensor:
    def repeat(x: Tensor) -> Tensor:
        return x[:, :, None].expand(B, 2, 2, T, D).reshape(B, 4, T, D)

    q, k, v = grouped(x)
    return F.scaled_dot_product_attention(q, repeat(k), repeat(v), is_causal=True)


@pytest.mark.parametrize("right", [by_interface, by_expansion])
def test_tiled_heads_are_named(right: Callable[[Tensor], Tensor]) -> None:
    x = draw(B, 4, T, D)
    q, k, v = grouped(x)
    wrong = F.scaled_dot_product_attention(q, k.repeat(1, 2, 1, 1), v.repeat(1, 2, 1, 1), is_causal=True)
    cause = cause_of(Function(right), x, wrong)
    assert cause is not None
    assert cause.switch == "kv heads", cause


def test_heads_repeated_for_the_keys_alone_are_named() -> None:
    x = draw(B, 4, T, D)
    q, k, v = grouped(x)
    wrong = F.scaled_dot_product_attention(q, k.repeat(1, 2, 1, 1), v.repeat_interleave(2, 1), is_causal=True)
    cause = cause_of(Function(by_interleave), x, wrong)
    assert cause is not None
    assert cause.switch == "kv heads", cause
