"""Every kind of model, as small as it shows its own parts."""

from __future__ import annotations

from typing import Any

SMALL: dict[str, Any] = {"img_size": (32, 48), "num_classes": 7}
_T2T: dict[str, Any] = {**SMALL, "embed_dim": 16, "depth": 1, "num_heads": 2, "token_dim": 8}
_VIT: dict[str, Any] = {**SMALL, "embed_dim": 16, "depth": 1, "num_heads": 2}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "performer": ("t2t_vit_14", _T2T),
    "transformer": ("t2t_vit_t_14", _T2T),
    "convolution": ("t2t_vit_14", {**_T2T, "tokens_type": "convolution"}),
    "se": ("t2t_vit_14_se", _T2T),
    "dense": (
        "t2t_vit_dense",
        {**SMALL, "embed_dim": 32, "growth_rate": 16, "block_config": (1, 1, 1, 1), "num_heads": 2, "token_dim": 8},
    ),
    "ghost": ("t2t_vit_16_ghost", _T2T),
    "resnext": ("t2t_vit_14_resnext", {**_T2T, "embed_dim": 64, "num_heads": 32}),
    "vit": ("vit_base_patch16_224", _VIT),
    "in21k": ("vit_base_patch16_224_in21k", {**_VIT, "num_classes": 21_843, "representation_size": 16}),
    "distilled": ("vit_deit_tiny_distilled_patch16_224", _VIT),
}
"""Kind -> name and arguments of `create_model`."""
