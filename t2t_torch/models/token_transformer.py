"""The T2T module's transformer layer with softmax attention (paper, section 3.1).

Source: yitu-opensource/T2T-ViT, models/token_transformer.py. Twin: t2t_jax/models/token_transformer.py.
Shapes: B batch, N tokens, C channels in, D token_dim.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from t2t_torch.models.transformer_block import Mlp


class Attention(nn.Module):
    """Attention that changes the width, (B, N, C) -> (B, N, D); the skip connection is `v`.

    As upstream, the scale is C^-0.5, with C the input width (147 or 576), not D^-0.5, and `q` is scaled before the
    product.
    """

    def __init__(self, dim: int, in_dim: int, qk_scale: float | None = None) -> None:
        super().__init__()
        self.scale = qk_scale or dim**-0.5
        self.qkv = nn.Linear(dim, in_dim * 3, bias=False)
        self.proj = nn.Linear(in_dim, in_dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        # PyTorch's fused kernels expect a dimension for the heads; there is one head.
        x = F.scaled_dot_product_attention(q.unsqueeze(1), k.unsqueeze(1), v.unsqueeze(1), scale=self.scale).squeeze(1)
        return v + self.proj(x)


class TokenTransformer(nn.Module):
    """Transformer layer of the T2T module: attn(norm1(x)), then x + mlp(norm2(x)); (B, N, dim) -> (B, N, in_dim).

    `dim` is the input width, `in_dim` (upstream's name) the width inside the layer and of the output.
    """

    def __init__(self, dim: int, in_dim: int, mlp_ratio: float = 1.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, in_dim)
        self.norm2 = nn.LayerNorm(in_dim)
        self.mlp = Mlp(in_dim, int(in_dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))
