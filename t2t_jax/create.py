"""`create_model`: a model by name, with published weights if asked for. Twin: t2t_torch/create.py."""

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
    """A freshly initialised model in evaluation mode, (B, H, W, in_chans) -> (B, num_classes).

    For training call `model.train()` and pass `rngs=nnx.Rngs(dropout=key)` with every call.

    Args:
        name: one of `list_models()`.
        pretrained: fill it with published weights: True for the model's default, or a tag of
            `t2t_config.PRETRAINED[name]`. Downloaded once; sizes that differ from the file's are fitted
            (see `init_weights`), and a UserWarning tells how.
        img_size: height and width in pixels, or one number for a square; None for the model's own (224, or 384), or
            that of the published weights.
        in_chans: channels of the images.
        num_classes: width of the head; 0 for features; None for the model's own (1000; in21k: 21843), or
            that of the published weights.
        drop_rate, attn_drop_rate, drop_path_rate: probabilities of dropout, attention dropout, stochastic depth.
        dtype: of the computation, e.g. `jnp.bfloat16`; None: that of parameters and images together.
        param_dtype: of the parameters. (float64 needs `jax_enable_x64`.)
        rngs: source of the initial weights; None for `nnx.Rngs(0)`.
        scan_blocks: keep the blocks as one stack that a scan runs, which compiles faster (see `models.scan_blocks`):
            tensors `blocks.*` with a leading axis. Files always hold the blocks one by one.
        overrides: any other argument of the model's class, e.g. `qk_scale`, `tokens_type`, `depth`.

    Raises:
        ValueError: unknown name (the nearest are suggested), unknown override, or sizes that do not fit together; no
            such weights, no way to get them, or no classifier in them; `scan_blocks` of blocks that differ
            (`t2t_vit_dense`).
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
