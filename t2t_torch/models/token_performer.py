"""The T2T module's performer layer: softmax attention by positive random features, linear in the number of tokens.

Source: yitu-opensource/T2T-ViT, models/token_performer.py; Performer (arXiv 2009.14794), equation 5.
Twin: t2t_jax/models/token_performer.py.
Shapes: B batch, N tokens, C channels in, D token_dim, M random features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class TokenPerformer(nn.Module):
    """Performer layer of the T2T module, (B, N, dim) -> (B, N, in_dim); the skip connection of its attention is `v`.

    As upstream, the fused projection holds **k, q, v** in this order and has a bias; `w` (M, D) has orthogonal rows of
    norm sqrt(M) and is saved, but never redrawn or trained; M = D // 2. Upstream hard-codes both dropout rates to 0.1,
    regardless of the model's `drop_rate`; here they are `drop`.

    Exponentials and sums are computed in at least float32; a float64 model uses float64 throughout.
    """

    epsilon = 1e-8

    def __init__(self, dim: int, in_dim: int, kernel_ratio: float = 0.5, drop: float = 0.1) -> None:
        super().__init__()
        self.m = int(in_dim * kernel_ratio)
        w = nn.init.orthogonal_(torch.empty(self.m, in_dim)) * math.sqrt(self.m)
        self.w = nn.Parameter(w, requires_grad=False)
        self.kqv = nn.Linear(dim, 3 * in_dim)
        self.dp = nn.Dropout(drop)
        self.proj = nn.Linear(in_dim, in_dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(in_dim)
        self.mlp = nn.Sequential(nn.Linear(in_dim, in_dim), nn.GELU(), nn.Linear(in_dim, in_dim), nn.Dropout(drop))

    def prm_exp(self, x: Tensor) -> Tensor:
        """Return positive random features exp(w x - |x|^2 / 2) / sqrt(M); (B, N, D) -> (B, N, M)."""
        half_norm = (x * x).sum(dim=-1, keepdim=True) / 2
        return torch.exp(x @ self.w.to(x.dtype).T - half_norm) / math.sqrt(self.m)

    def single_attn(self, x: Tensor) -> Tensor:
        """Return v + proj(attention), computed without the N x N matrix: q' (sum_n k'_n v_n^T) / (q' sum_n k'_n)."""
        k, q, v = self.kqv(x).chunk(3, dim=-1)
        with torch.autocast(x.device.type, enabled=False):
            dtype = torch.promote_types(v.dtype, torch.float32)
            kp, qp = self.prm_exp(k.to(dtype)), self.prm_exp(q.to(dtype))
            numerator = qp @ (kp.transpose(1, 2) @ v.to(dtype))
            denominator = qp @ kp.sum(dim=1).unsqueeze(-1)
            y = (numerator / (denominator + self.epsilon)).to(v.dtype)
        return v + self.dp(self.proj(y))

    def forward(self, x: Tensor) -> Tensor:
        x = self.single_attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))
