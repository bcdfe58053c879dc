"""`create_model`: create a model by name, optionally with pretrained weights. Twin: t2t_torch/create.py."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx

from t2t_config import find_pretrained, model_config
from t2t_jax.checkpoint import init_weights
from t2t_jax.models.registry import make_model
from t2t_jax.models.scan_blocks import stack_blocks


def create_model(
    name: str,
    *,
    pretrained: bool | str = False,
    img_size: int | tuple[int, int] | None = None,
    in_chans: int = 3,
    num_classes: int | None = None,
    drop_rate: float = 0.0,
    attn_drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    rngs: nnx.Rngs | None = None,
    scan_blocks: bool = False,
    **overrides: Any,
) -> nnx.Module:
    """Create a model in evaluation mode, (B, H, W, in_chans) -> (B, num_classes).

    For training, call `model.train()` and pass `rngs=nnx.Rngs(dropout=key)` to every call.

    Args:
        name: Model name, one of `list_models()`.
        pretrained: Whether to load pretrained weights: True for the model's default, or a tag of
            `t2t_config.PRETRAINED[name]`. Downloaded once; weights for other sizes are adapted
            (see `init_weights`) with a UserWarning.
        img_size: Height and width in pixels, or one number for a square. None: the size of the pretrained weights, or
            the model's default (224 or 384).
        in_chans: Number of input channels.
        num_classes: Number of classes; 0 returns features. None: the number of the pretrained weights, or the model's
            default (1000; in21k: 21843).
        drop_rate, attn_drop_rate, drop_path_rate: Rates of dropout, attention dropout and stochastic depth.
        dtype: Computation dtype, e.g. `jnp.bfloat16`. None promotes the dtypes of parameters and images.
        param_dtype: Dtype of the parameters. (float64 requires `jax_enable_x64`.)
        rngs: Random number generators for initialization. Default: `nnx.Rngs(0)`.
        scan_blocks: Whether to stack the blocks and run them in a scan, which compiles faster (see
            `models.scan_blocks`); the tensors `blocks.*` get a leading axis. Files always hold unstacked blocks.
        overrides: Any other argument of the model's class, e.g. `qk_scale`, `tokens_type`, `depth`.

    Raises:
        ValueError: Unknown name (similar ones are suggested), unknown override, or inconsistent sizes; there are no
            such weights, they cannot be downloaded or have no classifier; `scan_blocks` for a model whose blocks
            differ (`t2t_vit_dense`).
    """
    if pretrained:
        published = find_pretrained(name, pretrained)
        img_size = published.img_size if img_size is None else img_size
        own_classes = model_config(name).num_classes if published.num_classes is None else published.num_classes
        num_classes = own_classes if num_classes is None else num_classes
    model: Any = make_model(
        name,
        img_size=img_size,
        num_classes=num_classes,
        in_chans=in_chans,
        drop_rate=drop_rate,
        attn_drop_rate=attn_drop_rate,
        drop_path_rate=drop_path_rate,
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
        **overrides,
    )
    if pretrained:
        report = init_weights(model, published.download())
        report.warn(fresh_classifiers=model.num_classes != own_classes or bool(overrides.get("aux_head")))
    return stack_blocks(model) if scan_blocks else model
