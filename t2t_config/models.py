"""Model definitions: one table of sizes, shared by `t2t_torch` and `t2t_jax`.

Sources: T2T-ViT (arXiv 2101.11986, tables 1-3; yitu-opensource/T2T-ViT, models/*.py), ViT (arXiv 2010.11929), DeiT
(arXiv 2012.12877). `top1` and `num_params` are the authors' published values, not measured here.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from t2t_config.arguments import check_arguments
from t2t_config.text import readable

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Configuration of one named model.

    `arch` names the class (the same in both frameworks), `sizes` its constructor arguments. `num_params` includes
    frozen tensors. `in_paper` is False for the small sizes that exist for tests and the demo only.
    """

    arch: str
    sizes: Mapping[str, Any]
    img_size: int = 224
    num_classes: int = 1000
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    crop_pct: float = 0.9
    interpolation: str = "bicubic"
    top1: float | None = None
    num_params: int | None = None
    in_paper: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", MappingProxyType(dict(self.sizes)))


def _t2t(
    embed_dim: int,
    depth: int,
    num_heads: int,
    mlp_ratio: float,
    *,
    arch: str = "T2TViT",
    tokens_type: str = "performer",
    **fields: Any,
) -> ModelConfig:
    sizes = {
        "tokens_type": tokens_type,
        "embed_dim": embed_dim,
        "depth": depth,
        "num_heads": num_heads,
        "mlp_ratio": mlp_ratio,
    }
    if "token_dim" in fields:
        sizes["token_dim"] = fields.pop("token_dim")
    return ModelConfig(arch, sizes, **fields)


def _vit(patch_size: int, embed_dim: int, depth: int, num_heads: int, **fields: Any) -> ModelConfig:
    sizes = {"patch_size": patch_size, "embed_dim": embed_dim, "depth": depth, "num_heads": num_heads}
    for name in ("mlp_ratio", "qkv_bias", "norm_eps", "representation_size", "distilled"):
        if name in fields:
            sizes[name] = fields.pop(name)
    return ModelConfig("VisionTransformer", sizes, **fields)


_T2T: dict[str, ModelConfig] = {
    "t2t_vit_7": _t2t(256, 7, 4, 2.0, top1=71.7, num_params=4_310_222),
    "t2t_vit_10": _t2t(256, 10, 4, 2.0, top1=75.2, num_params=5_889_230),
    "t2t_vit_12": _t2t(256, 12, 4, 2.0, top1=76.5, num_params=6_941_902),
    "t2t_vit_14": _t2t(384, 14, 6, 3.0, top1=81.5, num_params=21_545_550),
    "t2t_vit_19": _t2t(448, 19, 7, 3.0, top1=81.9, num_params=39_177_422),
    "t2t_vit_24": _t2t(512, 24, 8, 3.0, top1=82.3, num_params=64_105_934),
    "t2t_vit_t_14": _t2t(384, 14, 6, 3.0, tokens_type="transformer", top1=81.7, num_params=21_541_070),
    "t2t_vit_t_19": _t2t(448, 19, 7, 3.0, tokens_type="transformer", top1=82.4, num_params=39_172_942),
    "t2t_vit_t_24": _t2t(512, 24, 8, 3.0, tokens_type="transformer", top1=82.6, num_params=64_101_454),
    "t2t_vit_14_resnext": _t2t(384, 14, 32, 3.0, top1=81.5, num_params=21_545_550),
    "t2t_vit_14_wide": _t2t(768, 4, 12, 3.0, top1=77.9, num_params=25_156_302),
    "t2t_vit_14_se": _t2t(384, 14, 6, 3.0, arch="T2TViTSE", top1=81.6, num_params=21_803_598),
    "t2t_vit_dense": ModelConfig(
        "T2TViTDense",
        {
            "tokens_type": "performer",
            "growth_rate": 64,
            "block_config": (3, 6, 6, 4),
            "embed_dim": 128,
            "num_heads": 8,
            "mlp_ratio": 2.0,
        },
        top1=80.6,
        num_params=23_647_062,
    ),
    "t2t_vit_16_ghost": _t2t(384, 16, 6, 3.0, arch="T2TViTGhost", top1=79.5, num_params=16_253_262),
    # Not from the paper: small sizes for tests and for the demo.
    "t2t_vit_tiny": _t2t(128, 4, 2, 2.0, token_dim=32, in_paper=False),
    "t2t_vit_micro": _t2t(64, 2, 2, 2.0, token_dim=16, in_paper=False),
}

_HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
_LARGE_INPUT = {"img_size": 384, "crop_pct": 1.0}
_IN21K = {"num_classes": 21_843, **_HALF}
_MIIL: dict[str, Any] = {
    "mean": (0.0, 0.0, 0.0),
    "std": (1.0, 1.0, 1.0),
    "crop_pct": 0.875,
    "interpolation": "bilinear",
}

_VIT: dict[str, ModelConfig] = {
    # The "small" of the official file: 8 blocks of width 768, no qkv bias, LayerNorm eps 1e-5; not DeiT-small.
    "vit_small_patch16_224": _vit(16, 768, 8, 8, mlp_ratio=3.0, qkv_bias=False, norm_eps=1e-5),
    "vit_base_patch16_224": _vit(16, 768, 12, 12, **_HALF),
    "vit_base_patch32_224": _vit(32, 768, 12, 12, **_HALF),
    "vit_base_patch16_384": _vit(16, 768, 12, 12, **_HALF, **_LARGE_INPUT),
    "vit_base_patch32_384": _vit(32, 768, 12, 12, **_HALF, **_LARGE_INPUT),
    "vit_large_patch16_224": _vit(16, 1024, 24, 16, **_HALF),
    "vit_large_patch32_224": _vit(32, 1024, 24, 16, **_HALF),
    "vit_large_patch16_384": _vit(16, 1024, 24, 16, **_HALF, **_LARGE_INPUT),
    "vit_large_patch32_384": _vit(32, 1024, 24, 16, **_HALF, **_LARGE_INPUT),
    "vit_base_patch16_224_in21k": _vit(16, 768, 12, 12, representation_size=768, **_IN21K),
    "vit_base_patch32_224_in21k": _vit(32, 768, 12, 12, representation_size=768, **_IN21K),
    "vit_large_patch16_224_in21k": _vit(16, 1024, 24, 16, representation_size=1024, **_IN21K),
    "vit_large_patch32_224_in21k": _vit(32, 1024, 24, 16, representation_size=1024, **_IN21K),
    "vit_huge_patch14_224_in21k": _vit(14, 1280, 32, 16, representation_size=1280, **_IN21K),
    "vit_base_patch16_224_miil_in21k": _vit(16, 768, 12, 12, qkv_bias=False, num_classes=11_221, **_MIIL),
    "vit_base_patch16_224_miil": _vit(16, 768, 12, 12, qkv_bias=False, **_MIIL),
    "vit_deit_tiny_patch16_224": _vit(16, 192, 12, 3),
    "vit_deit_small_patch16_224": _vit(16, 384, 12, 6),
    "vit_deit_base_patch16_224": _vit(16, 768, 12, 12),
    "vit_deit_base_patch16_384": _vit(16, 768, 12, 12, **_LARGE_INPUT),
    "vit_deit_tiny_distilled_patch16_224": _vit(16, 192, 12, 3, distilled=True),
    "vit_deit_small_distilled_patch16_224": _vit(16, 384, 12, 6, distilled=True),
    "vit_deit_base_distilled_patch16_224": _vit(16, 768, 12, 12, distilled=True),
    "vit_deit_base_distilled_patch16_384": _vit(16, 768, 12, 12, distilled=True, **_LARGE_INPUT),
}

MODELS: Mapping[str, ModelConfig] = MappingProxyType({**_T2T, **_VIT})
"""All models by their official names."""

ALIASES: Mapping[str, str] = MappingProxyType(
    {name.removeprefix("vit_"): name for name in _VIT if name.startswith("vit_deit_")}
)
"""Current timm names of the DeiT models -> official names."""


def list_models() -> list[str]:
    """Return all names that `create_model` accepts: official names, then the timm aliases."""
    return [*MODELS, *ALIASES]


def model_config(name: str) -> ModelConfig:
    """Return the configuration of `name` (official name or alias).

    Raises:
        ValueError: If the name is unknown; the message suggests the closest ones.
    """
    if not isinstance(name, str):
        raise ValueError(f"the name of a model is a string, not {name!r}: see list_models()")
    config = MODELS.get(ALIASES.get(name, name))
    if config is None:
        near = difflib.get_close_matches(name, list_models(), n=3, cutoff=0.3)
        hint = f"did you mean {', '.join(near)}?" if near else "see list_models()"
        raise ValueError(f"unknown model {readable(name)!r}: {hint}")
    return config


def model_arguments(
    name: str,
    *,
    img_size: int | tuple[int, int] | None,
    num_classes: int | None,
    overrides: Mapping[str, Any],
) -> tuple[str, dict[str, Any]]:
    """Return class name and constructor arguments of `name`; `overrides` take precedence, None selects the model's own.

    As upstream (`_create_vision_transformer`), an in21k model loses its `pre_logits` layer if `num_classes` differs
    from its own, unless `representation_size` is given.

    Raises:
        ValueError: If the name is unknown, or an argument is invalid (see `check_arguments`).
    """
    config = model_config(name)
    arguments = {**config.sizes, **overrides}
    arguments["img_size"] = config.img_size if img_size is None else img_size
    arguments["num_classes"] = config.num_classes if num_classes is None else num_classes
    if arguments["num_classes"] != config.num_classes and "representation_size" not in overrides:
        arguments.pop("representation_size", None)
    check_arguments(config.arch, arguments)
    return config.arch, arguments
