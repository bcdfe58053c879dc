"""`create_model`: a model by name, with published weights if asked for. Twin: t2t_jax/create.py."""

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
    """A freshly initialised model in training mode, (B, in_chans, H, W) -> (B, num_classes).

    Args:
        name: one of `list_models()`.
        pretrained: fill it with published weights: True for the model's default, or a tag of
            `t2t_config.PRETRAINED[name]`. Downloaded once; sizes that differ from the file's are fitted
            (see `load_checkpoint`), and a UserWarning tells how.
        img_size: height and width in pixels, or one number for a square; None for the model's own (224, or 384), or
            that of the published weights.
        in_chans: channels of the images.
        num_classes: width of the head; 0 for features; None for the model's own (1000; in21k: 21843), or
            that of the published weights.
        drop_rate, attn_drop_rate, drop_path_rate: probabilities of dropout, attention dropout, stochastic depth.
        overrides: any other argument of the model's class, e.g. `qk_scale`, `tokens_type`, `depth`.

    Raises:
        ValueError: unknown name (the nearest are suggested), unknown override, or sizes that do not fit together; no
            such weights, no way to get them, or no classifier in them.
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
