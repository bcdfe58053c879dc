"""The baseline of the measurements: T2T-ViT with performer, transcribed into PyTorch as the paper and the authors' code
put it, without any care for speed. Not the product: that is `t2t_torch`.

Source: yitu-opensource/T2T-ViT, models/. Its `state_dict` is `t2t_torch`'s, so that a test holds both equal.
Shapes: B batch, N tokens, C channels, H heads, D channels per head or token_dim, M random features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from t2t_torch.models.transformer_block import get_sinusoid_encoding


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attn = (q @ k.transpose(-2, -1) * self.scale).softmax(dim=-1)
        return self.proj((attn @ v).transpose(1, 2).reshape(B, N, C))


class Block(nn.Module):
    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), Attention(dim, num_heads)
        self.norm2, self.mlp = nn.LayerNorm(dim), Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TokenPerformer(nn.Module):
    def __init__(self, dim: int, token_dim: int = 64) -> None:
        super().__init__()
        self.token_dim, self.m = token_dim, token_dim // 2
        self.w = nn.Parameter(torch.zeros(self.m, token_dim), requires_grad=False)
        self.kqv, self.proj = nn.Linear(dim, 3 * token_dim), nn.Linear(token_dim, token_dim)
        self.dp = nn.Dropout(0.1)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(token_dim)
        self.mlp = nn.Sequential(
            nn.Linear(token_dim, token_dim), nn.GELU(), nn.Linear(token_dim, token_dim), nn.Dropout(0.1)
        )
        nn.init.orthogonal_(self.w, math.sqrt(self.m))

    def prm_exp(self, x: Tensor) -> Tensor:
        half_norm = ((x * x).sum(dim=-1, keepdim=True)).repeat(1, 1, self.m) / 2
        wtx = torch.einsum("bnd,md->bnm", x, self.w)
        return torch.exp(wtx - half_norm) / math.sqrt(self.m)

    def forward(self, x: Tensor) -> Tensor:
        k, q, v = torch.split(self.kqv(self.norm1(x)), self.token_dim, dim=-1)
        kp, qp = self.prm_exp(k), self.prm_exp(q)
        normaliser = torch.einsum("bnm,bm->bn", qp, kp.sum(dim=1)).unsqueeze(dim=2)
        kptv = torch.einsum("bnd,bnm->bdm", v, kp)
        y = torch.einsum("bnm,bdm->bnd", qp, kptv) / (normaliser.repeat(1, 1, self.token_dim) + 1e-8)
        x = v + self.dp(self.proj(y))
        return x + self.mlp(self.norm2(x))


class T2TModule(nn.Module):
    def __init__(self, in_chans: int, embed_dim: int, token_dim: int = 64) -> None:
        super().__init__()
        self.soft_split0 = nn.Unfold(kernel_size=7, stride=4, padding=2)
        self.soft_split1 = nn.Unfold(kernel_size=3, stride=2, padding=1)
        self.soft_split2 = nn.Unfold(kernel_size=3, stride=2, padding=1)
        self.attention1 = TokenPerformer(in_chans * 49, token_dim)
        self.attention2 = TokenPerformer(token_dim * 9, token_dim)
        self.project = nn.Linear(token_dim * 9, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention1(self.soft_split0(x).transpose(1, 2))
        x = self.attention2(self.soft_split1(square(x)).transpose(1, 2))
        return self.project(self.soft_split2(square(x)).transpose(1, 2))


def square(x: Tensor) -> Tensor:
    """Tokens as a square image: (B, N, C) -> (B, C, N^0.5, N^0.5)."""
    B, N, C = x.shape
    return x.transpose(1, 2).reshape(B, C, math.isqrt(N), math.isqrt(N))


class Baseline(nn.Module):
    """(B, 3, img_size, img_size) -> (B, num_classes), for images whose side 16 divides."""

    def __init__(
        self, embed_dim: int, depth: int, num_heads: int, mlp_ratio: float, img_size: int = 224, num_classes: int = 1000
    ) -> None:
        super().__init__()
        self.tokens_to_token = T2TModule(3, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        table = get_sinusoid_encoding((img_size // 16) ** 2 + 1, embed_dim)
        self.pos_embed = nn.Parameter(table, requires_grad=False)
        self.blocks = nn.ModuleList([Block(embed_dim, num_heads, mlp_ratio) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(embed_dim), nn.Linear(embed_dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens_to_token(x)
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])
