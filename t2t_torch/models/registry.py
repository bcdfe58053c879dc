"""Creation of models by name. Twin: t2t_jax/models/registry.py; the sizes are in t2t_config/models.py."""

from __future__ import annotations

from typing import Any

from torch import nn

from t2t_config import ModelSpec, list_models, model_arguments
from t2t_torch.models.t2t_vit import T2TViT
from t2t_torch.models.t2t_vit_dense import T2TViTDense
from t2t_torch.models.t2t_vit_ghost import T2TViTGhost
from t2t_torch.models.t2t_vit_se import T2TViTSE
from t2t_torch.models.vit import VisionTransformer

ARCHITECTURES: dict[str, type[nn.Module]] = {
    cls.__name__: cls for cls in (T2TViT, T2TViTSE, T2TViTDense, T2TViTGhost, VisionTransformer)
}


def make_model(
    name: str, *, img_size: int | tuple[int, int] | None = None, num_classes: int | None = None, **overrides: Any
) -> nn.Module:
    """Create a randomly initialised model in training mode.

    Args: Same as `t2t_torch.create_model`, except `pretrained`.

    Raises:
        ValueError: If the name (the message suggests the nearest) or an override is unknown, or sizes do not match.
    """
    arch, arguments = model_arguments(name, img_size=img_size, num_classes=num_classes, overrides=overrides)
    try:
        model: Any = ARCHITECTURES[arch](**arguments)
    except TypeError as error:
        if "unexpected keyword argument" in str(error):
            raise ValueError(f"{name}: {error}; overrides are the arguments of {arch}") from error
        raise
    model.spec = ModelSpec.of(name, overrides)
    return model


__all__ = ["ARCHITECTURES", "list_models", "make_model"]
