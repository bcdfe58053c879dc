"""Creation of models by name. Twin: t2t_torch/models/registry.py; the sizes are in t2t_config/models.py."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx

from t2t_config import ModelSpec, list_models, model_arguments
from t2t_jax.models.t2t_vit import T2TViT
from t2t_jax.models.t2t_vit_dense import T2TViTDense
from t2t_jax.models.t2t_vit_ghost import T2TViTGhost
from t2t_jax.models.t2t_vit_se import T2TViTSE
from t2t_jax.models.vit import VisionTransformer

_CLASSES: tuple[Any, ...] = (T2TViT, T2TViTSE, T2TViTDense, T2TViTGhost, VisionTransformer)
ARCHITECTURES: dict[str, Any] = {cls.__name__: cls for cls in _CLASSES}


def make_model(
    name: str,
    *,
    img_size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    rngs: nnx.Rngs | None = None,
    **overrides: Any,
) -> nnx.Module:
    """Create a randomly initialised model in evaluation mode, with its blocks as a list (not stacked).

    Args: Same as `t2t_jax.create_model`, except `pretrained` and `scan_blocks`.

    Raises:
        ValueError: If the name (the message suggests the nearest) or an override is unknown, or sizes do not match.
    """
    arch, arguments = model_arguments(name, img_size=img_size, num_classes=num_classes, overrides=overrides)
    try:
        model = ARCHITECTURES[arch](
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=nnx.Rngs(0) if rngs is None else rngs,
            **arguments,
        )
    except TypeError as error:
        if "unexpected keyword argument" in str(error):
            raise ValueError(f"{name}: {error}; overrides are the arguments of {arch}") from error
        raise
    model.spec = ModelSpec.of(name, overrides)
    model.eval()
    return model


__all__ = ["ARCHITECTURES", "list_models", "make_model"]
