"""Fused functions of PyTorch written out, so that each function inside them is a separate step."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


def multi_head_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    embed_dim: int,
    num_heads: int,
    in_proj_weight: torch.Tensor | None,
    in_proj_bias: torch.Tensor | None,
    bias_k: torch.Tensor | None,
    bias_v: torch.Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: torch.Tensor,
    out_proj_bias: torch.Tensor | None,
    training: bool = True,
    key_padding_mask: torch.Tensor | None = None,
    need_weights: bool = True,
    attn_mask: torch.Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: torch.Tensor | None = None,
    k_proj_weight: torch.Tensor | None = None,
    v_proj_weight: torch.Tensor | None = None,
    static_k: torch.Tensor | None = None,
    static_v: torch.Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute `torch.nn.functional.multi_head_attention_forward` without dropout.

    Inputs are (length, batch, width) or (length, width).

    Raises:
        NotImplementedError: If a rarely used option is set (`bias_k`, `add_zero_attn`, `static_k`, dropout).
    """
    if bias_k is not None or add_zero_attn or static_k is not None or (training and dropout_p > 0):
        raise NotImplementedError
    batched = query.dim() == 3
    if not batched:
        query, key, value = query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)
        key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
    weights: Any = (q_proj_weight, k_proj_weight, v_proj_weight)
    if in_proj_weight is not None and not use_separate_proj_weight:
        weights = in_proj_weight.chunk(3)
    biases: Any = (None, None, None) if in_proj_bias is None else in_proj_bias.chunk(3)
    # One line each, so that each has its own place.
    q = F.linear(query, weights[0], biases[0])
    k = F.linear(key, weights[1], biases[1])
    v = F.linear(value, weights[2], biases[2])
    q, k, v = (x.unflatten(2, (num_heads, -1)).permute(1, 2, 0, 3) for x in (q, k, v))
    mask = _mask(attn_mask, key_padding_mask, q, k)
    if need_weights:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        attention = (scores if mask is None else scores + mask).softmax(-1)
        y = attention @ v
    else:
        y = F.scaled_dot_product_attention(q, k, v, mask)
    y = F.linear(y.permute(2, 0, 1, 3).flatten(2), out_proj_weight, out_proj_bias)
    shown: torch.Tensor | None = None
    if need_weights:
        shown = attention.mean(1) if average_attn_weights else attention
    if batched:
        return y, shown
    return y.squeeze(1), None if shown is None else shown.squeeze(0)


def _mask(
    attn_mask: torch.Tensor | None, key_padding_mask: torch.Tensor | None, q: torch.Tensor, k: torch.Tensor
) -> torch.Tensor | None:
    """Combine both masks into one that is added to the scores (batch, heads, query, key)."""
    found = None
    if attn_mask is not None:
        found = _added(attn_mask, q)
        if found.dim() == 3:
            found = found.unflatten(0, (-1, q.shape[1]))
    if key_padding_mask is not None:
        padding = _added(key_padding_mask, q)[:, None, None, :]
        found = padding if found is None else found + padding
    return found


def _added(mask: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -torch.inf)
