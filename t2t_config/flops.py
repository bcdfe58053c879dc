"""Floating-point operations of every model, computed from its sizes.

All multiply-adds of matrix products and convolutions are counted, as 2 each. Elementwise operations are not: softmax,
LayerNorm, GELU, the performer's exponentials and sums, the Ghost model's per-channel factors. (The soft splits only
rearrange.) This is the numerator of MFU, model FLOPs utilisation (PaLM, arXiv 2204.02311, appendix B): what the model
needs, without recomputation to save memory. Papers call half of it, the multiply-adds, "MACs" and often "FLOPs".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from t2t_config.models import model_arguments
from t2t_config.shapes import SOFT_SPLITS, patch_grid, soft_split_grids, to_pair

Part = tuple[str, int]


def forward_flops(
    name: str,
    *,
    img_size: int | tuple[int, int] | None = None,
    in_chans: int = 3,
    num_classes: int | None = None,
    **overrides: Any,
) -> int:
    """Return the FLOPs of the forward pass of one image; the arguments are those of `create_model`.

    Raises:
        ValueError: If the name is unknown, or the sizes do not fit together.
    """
    parts = forward_flops_by_part(name, img_size=img_size, in_chans=in_chans, num_classes=num_classes, **overrides)
    return sum(parts.values())


def training_flops(
    name: str,
    *,
    img_size: int | tuple[int, int] | None = None,
    in_chans: int = 3,
    num_classes: int | None = None,
    **overrides: Any,
) -> int:
    """Return the FLOPs of one image in a training step: forward pass, and the gradients of both factors of every
    product.

    This is three times the forward pass, minus the gradients that are not needed: with respect to the images (if the
    first layer is a convolution; a soft split is followed by a trained LayerNorm, whose gradient passes through the
    projection), and with respect to the performer's frozen `w`. The optimizer runs elementwise.

    Raises:
        ValueError: As raised by `forward_flops`.
    """
    parts = forward_flops_by_part(name, img_size=img_size, in_chans=in_chans, num_classes=num_classes, **overrides)
    first = ("patch_embed.proj", "tokens_to_token.soft_split0")
    spared = sum(flops for part, flops in parts.items() if part in first or part.endswith(".w"))
    return 3 * sum(parts.values()) - spared


def forward_flops_by_part(
    name: str,
    *,
    img_size: int | tuple[int, int] | None = None,
    in_chans: int = 3,
    num_classes: int | None = None,
    **overrides: Any,
) -> dict[str, int]:
    """Return the FLOPs of one image by module: `blocks.0.mlp.fc1`.

    Products of activations are counted under their attention module (`blocks.0.attn`), the performer's random features
    under their matrix (`tokens_to_token.attention1.w`).

    Raises:
        ValueError: As raised by `forward_flops`.
    """
    arch, sizes = model_arguments(name, img_size=img_size, num_classes=num_classes, overrides=overrides)
    sizes |= {"img_size": to_pair(sizes["img_size"]), "in_chans": in_chans}
    parts = _vision_transformer(**sizes) if arch == "VisionTransformer" else _t2t_vit(arch, **sizes)
    return dict(parts)


# ---- models ----


def _t2t_vit(
    arch: str,
    *,
    img_size: tuple[int, int],
    in_chans: int,
    num_classes: int,
    tokens_type: str,
    embed_dim: int,
    depth: int = 0,
    mlp_ratio: float,
    token_dim: int = 64,
    growth_rate: int = 0,
    block_config: tuple[int, ...] = (),
    aux_head: bool = False,
    **unused: Any,
) -> Iterator[Part]:
    grids = [height * width for height, width in soft_split_grids(img_size)]
    yield from _tokens_to_token(tokens_type, grids, in_chans, token_dim, embed_dim)
    tokens, width = grids[-1] + 1, embed_dim
    if arch == "T2TViTDense":
        index = 0
        for stage, num_layers in enumerate(block_config):
            if stage > 0:
                yield f"blocks.{index}.linear", _linear(tokens, width, width // 2)
                width, index = width // 2, index + 1
            for _ in range(num_layers):
                yield from _block(f"blocks.{index}", tokens, width, mlp_ratio)
                yield f"blocks.{index}.dense_linear", _linear(tokens, width, growth_rate)
                width, index = width + growth_rate, index + 1
    else:
        block = {"T2TViT": _block, "T2TViTSE": _se_block, "T2TViTGhost": _ghost_block}[arch]
        for i in range(depth):
            yield from block(f"blocks.{i}", tokens, width, mlp_ratio)
    if num_classes:
        yield "head", _linear(1, width, num_classes)
        if aux_head:
            yield "aux_head", _linear(grids[-1], width, num_classes)


def _vision_transformer(
    *,
    img_size: tuple[int, int],
    in_chans: int,
    num_classes: int,
    patch_size: int,
    embed_dim: int,
    depth: int,
    mlp_ratio: float = 4.0,
    representation_size: int | None = None,
    distilled: bool = False,
    **unused: Any,
) -> Iterator[Part]:
    height, width = patch_grid(img_size, patch_size)
    patches = height * width
    yield "patch_embed.proj", _linear(patches, in_chans * patch_size**2, embed_dim)
    for i in range(depth):
        yield from _block(f"blocks.{i}", patches + (2 if distilled else 1), embed_dim, mlp_ratio)
    features = embed_dim
    if representation_size and not distilled:
        features = representation_size
        yield "pre_logits.fc", _linear(1, embed_dim, features)
    if num_classes:
        yield "head", _linear(1, features, num_classes)
        if distilled:
            yield "head_dist", _linear(1, features, num_classes)


# ---- layers; N tokens, C channels, D token_dim ----


def _linear(N: int, features_in: int, features_out: int) -> int:
    return 2 * N * features_in * features_out


def _tokens_to_token(
    tokens_type: str, grids: list[int], in_chans: int, token_dim: int, embed_dim: int
) -> Iterator[Part]:
    areas = [kernel**2 for kernel, _, _ in SOFT_SPLITS]
    path = "tokens_to_token"
    if tokens_type == "convolution":
        yield f"{path}.soft_split0", _linear(grids[0], in_chans * areas[0], token_dim)
        yield f"{path}.soft_split1", _linear(grids[1], token_dim * areas[1], token_dim)
    else:
        layer = {"performer": _token_performer, "transformer": _token_transformer}.get(tokens_type)
        if layer is None:
            raise ValueError(f"tokens_type {tokens_type!r} is not one of performer, transformer, convolution")
        yield from layer(f"{path}.attention1", grids[0], in_chans * areas[0], token_dim)
        yield from layer(f"{path}.attention2", grids[1], token_dim * areas[1], token_dim)
    yield f"{path}.project", _linear(grids[2], token_dim * areas[2], embed_dim)


def _token_performer(path: str, N: int, C: int, D: int) -> Iterator[Part]:
    M = int(D * 0.5)  # random features
    yield f"{path}.kqv", _linear(N, C, 3 * D)
    yield f"{path}.w", 2 * _linear(N, D, M)  # of k and of q
    # k'^T v, its product with q', and the product of q' with the sum of k'
    yield path, 2 * _linear(N, M, D) + _linear(N, M, 1)
    yield f"{path}.proj", _linear(N, D, D)
    yield f"{path}.mlp.0", _linear(N, D, D)
    yield f"{path}.mlp.2", _linear(N, D, D)


def _token_transformer(path: str, N: int, C: int, D: int) -> Iterator[Part]:
    yield f"{path}.attn.qkv", _linear(N, C, 3 * D)
    yield f"{path}.attn", 2 * _linear(N, D, N)
    yield f"{path}.attn.proj", _linear(N, D, D)
    yield f"{path}.mlp.fc1", _linear(N, D, D)
    yield f"{path}.mlp.fc2", _linear(N, D, D)


def _block(path: str, N: int, C: int, mlp_ratio: float) -> Iterator[Part]:
    yield f"{path}.attn.qkv", _linear(N, C, 3 * C)
    yield f"{path}.attn", 2 * _linear(N, C, N)  # q k^T and its product with v, over all heads
    yield f"{path}.attn.proj", _linear(N, C, C)
    yield f"{path}.mlp.fc1", _linear(N, C, int(C * mlp_ratio))
    yield f"{path}.mlp.fc2", _linear(N, int(C * mlp_ratio), C)


def _se_block(path: str, N: int, C: int, mlp_ratio: float) -> Iterator[Part]:
    yield from _block(path, N, C, mlp_ratio)
    yield f"{path}.attn.se_layer.fc.0", _linear(1, C, C // 16)
    yield f"{path}.attn.se_layer.fc.2", _linear(1, C // 16, C)


def _ghost_block(path: str, N: int, C: int, mlp_ratio: float) -> Iterator[Part]:
    for name in ("q", "k", "v"):
        yield f"{path}.attn.{name}", _linear(N, C, C // 2)
    yield f"{path}.attn", 2 * _linear(N, C, N)
    yield f"{path}.attn.proj", _linear(N, C, C)
    yield f"{path}.mlp.fc1", _linear(N, C, C)
    yield f"{path}.mlp.fc2", _linear(N, 3 * C, C)
