"""`create_model`: create a model by name, optionally with pretrained weights. Twin: t2t_jax/create.py."""

from __future__ import annotations

from typing import Any

from torch import nn

from t2t_config import find_pretrained, model_config
from t2t_torch.checkpoint import load_checkpoint
from t2t_torch.models.registry import make_model


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
    **overrides: Any,
) -> nn.Module:
    """Create a model in training mode, (B, in_chans, H, W) -> (B, num_classes).

    Args:
        name: Model name, one of `list_models()`.
        pretrained: Whether to load pretrained weights: True for the model's default, or a tag of
            `t2t_config.PRETRAINED[name]`. Downloaded once; weights for other sizes are adapted
            (see `load_checkpoint`) with a UserWarning.
        img_size: Height and width in pixels, or one number for a square. None: the size of the pretrained weights, or
            the model's default (224 or 384).
        in_chans: Number of input channels.
        num_classes: Number of classes; 0 returns features. None: the number of the pretrained weights, or the model's
            default (1000; in21k: 21843).
        drop_rate, attn_drop_rate, drop_path_rate: Rates of dropout, attention dropout and stochastic depth.
        overrides: Any other argument of the model's class, e.g. `qk_scale`, `tokens_type`, `depth`.

    Raises:
        ValueError: Unknown name (similar ones are suggested), unknown override, or inconsistent sizes; there are no
            such weights, or they cannot be downloaded or have no classifier.
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
        **overrides,
    )
    if pretrained:
        report = load_checkpoint(model, published.download())
        report.warn(fresh_classifiers=model.num_classes != own_classes or bool(overrides.get("aux_head")))
    return model
