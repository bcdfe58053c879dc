"""Layer-wise learning rate decay: the earlier a layer, the smaller its steps.

Source: timm, `param_groups_layer_decay`. The embedding is layer 0, block i is layer i + 1, the last norm belongs to the
last block, and the classifiers are the layer after it.
"""

from __future__ import annotations

import re

EMBEDDING = ("patch_embed", "tokens_to_token", "cls_token", "dist_token", "pos_embed")
"""Modules and parameters of layer 0."""

_OF_BLOCK = re.compile(r"blocks\.(\d+)\.")


def layer_scale(name: str, depth: int, decay: float) -> float:
    """Return the factor of the learning rate of a parameter, decay^(layers above it); 1 for the classifiers.

    Args:
        name: Name of the parameter, such as "blocks.3.attn.qkv.weight".
        depth: Number of blocks of the model.
        decay: Ratio of the factors of two consecutive layers.
    """
    return decay ** (depth + 1 - _layer(name, depth))


def _layer(name: str, depth: int) -> int:
    if name.partition(".")[0] in EMBEDDING:
        return 0
    if block := _OF_BLOCK.match(name):
        return int(block[1]) + 1
    return depth if name.startswith("norm.") else depth + 1
