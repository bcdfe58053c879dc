"""Register the T2T-ViT models in timm: `import t2t_torch.timm_models`, then `timm.create_model("t2t_vit_14", ...)`.

Only T2T-ViT models are registered; timm has its own ViT and DeiT. Tags are those of `t2t_config.PRETRAINED`
("t2t_vit_14.in1k_384"). timm loads the weights in its own ways (url, file, state dict, hub id, local folder); load a
folder written by `save_pretrained` with `timm.create_model("local-dir:FOLDER", pretrained=True)`. Unlike in the
authors' registration, the attention scale does not depend on `pretrained`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

from torch import Tensor, nn

try:
    from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"this needs timm ({error}): pip install timm", name=error.name) from error

from t2t_config import MODELS, PRETRAINED, ModelConfig, Pretrained
from t2t_config.shapes import saved_grid
from t2t_config.weights.layouts import to_official
from t2t_torch.checkpoint_file import pick_entry
from t2t_torch.create import create_model
from t2t_torch.weights.adapt import adapt_weights

REFUSED = {
    "features_only": "there is no pyramid of features; num_classes=0 gives the class token's features, "
    "forward_features all tokens",
    "global_pool": "the head reads the class token",
}
"""timm arguments that are not supported -> reason."""


def _cfg(config: ModelConfig, published: Pretrained | None) -> dict[str, Any]:
    """Return timm's `pretrained_cfg`."""
    found = published or Pretrained(url="")
    size = found.img_size or config.img_size
    return {
        "url": found.url,
        "input_size": (3, size, size),
        "fixed_input_size": True,
        "interpolation": config.interpolation,
        "crop_pct": config.crop_pct,
        "mean": config.mean,
        "std": config.std,
        "num_classes": found.num_classes or config.num_classes,
        "pool_size": None,
        "first_conv": None,  # not a convolution; `filter_state_dict` adapts it to other channels
        "classifier": "head",
        "license": "bsd-3-clause-clear",
        "origin_url": "https://github.com/yitu-opensource/T2T-ViT",
        "paper_ids": "arXiv:2101.11986",
    }


NAMES = tuple(name for name in MODELS if name.startswith("t2t_"))

default_cfgs = generate_default_cfgs(
    {f"{name}.{tag}": _cfg(MODELS[name], file) for name in NAMES for tag, file in PRETRAINED.get(name, {}).items()}
    | {name: _cfg(MODELS[name], None) for name in NAMES if name not in PRETRAINED}
)


def filter_state_dict(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Convert a state dict loaded by timm to official names, and adapt it to the sizes and classes of `model`.

    Raises:
        ValueError: It has no weights, or the weights of another model.
    """
    weights, _ = to_official(pick_entry("the checkpoint", state_dict, use_ema=True).state_dict)
    positions = weights["pos_embed"].shape[1] - 1 if "pos_embed" in weights else 0
    _, *img_size = cast(Any, model).pretrained_cfg["input_size"]
    return dict(adapt_weights(weights, model, saved_grid(img_size, positions)).weights)


def _create(name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    for argument, reason in REFUSED.items():
        if kwargs.get(argument):
            raise ValueError(f"{name} takes no {argument}: {reason}")
    return build_model_with_cfg(
        functools.partial(create_model, name),
        name,
        pretrained,
        pretrained_filter_fn=filter_state_dict,
        pretrained_strict=False,  # `adapt_weights` has checked every name; a head for other classes is not loaded
        **kwargs,
    )


def _entrypoint(name: str) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return _create(name, pretrained, **kwargs)

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"`t2t_torch.create_model({name!r}, ...)`, as timm calls it."
    return create


for _name in NAMES:
    globals()[_name] = register_model(_entrypoint(_name))
