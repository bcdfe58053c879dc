"""Validation of model arguments, shared by both frameworks so that the same mistake raises the same ValueError."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

COUNTS = ("in_chans", "embed_dim", "depth", "num_heads", "token_dim", "patch_size", "growth_rate")
RATES = ("drop_rate", "attn_drop_rate", "drop_path_rate", "performer_drop_rate")
FLAGS = ("qkv_bias", "distilled", "aux_head")

_MOST = 2**31
"""Upper bound on the number of channels."""


def check_arguments(arch: str, arguments: Mapping[str, Any]) -> None:
    """Check the arguments that the class `arch` accepts; relations between tensor shapes are checked by the layers.

    Raises:
        ValueError: If an argument has the wrong type, is out of range, or too small for another; the message names it,
            its value and the allowed values.
    """
    for name, value in arguments.items():
        expected = _expected(name, value)
        if expected:
            raise ValueError(f"{name} {value!r} is not {expected}")
    widths = list(_widths(arch, arguments))
    ratio = arguments.get("mlp_ratio", 4.0)
    if not 1 <= min(widths) * ratio <= max(widths) * ratio < _MOST:
        raise ValueError(f"mlp_ratio {ratio!r} times embed_dim is not a number of channels: give one near 4")
    if arch == "T2TViTSE" and min(widths) < 16:
        raise ValueError(f"embed_dim {min(widths)} is too small to be squeezed to a 16th: give 16 or more")
    if arguments.get("tokens_type") == "performer" and arguments.get("token_dim", 64) < 2:
        raise ValueError("token_dim 1 is too small for a performer, which halves it: give 2 or more")
    stages, depth = len(arguments.get("block_config", ())), arguments.get("depth", 12)
    if stages > depth:
        raise ValueError(f"block_config has {stages} stages, more than depth {depth}: give a depth of {stages} or more")


def _expected(name: str, value: Any) -> str | None:
    """Return a description of the valid values if `value` is invalid; None if it is valid or not checked."""
    if name in COUNTS:
        return None if _is_whole(value, 1) else "a whole number from 1"
    if name in RATES:
        return None if _is_real(value) and 0 <= value <= 1 else "a probability: give a number from 0 to 1"
    if name in FLAGS:
        return None if isinstance(value, bool) else "True or False"
    match name:
        case "num_classes":
            return None if _is_whole(value, 0) else "a number of classes: give a whole number from 0"
        case "representation_size":
            return None if value is None or _is_whole(value, 0) else "a number of channels, nor None"
        case "img_size":
            sides = value if isinstance(value, tuple | list) and len(value) == 2 else [value]
            right = all(_is_whole(side, 1) for side in sides)
            return None if right else "a size in pixels: give a whole number from 1, or (height, width)"
        case "block_config":
            listed = isinstance(value, Sequence) and len(value) > 0
            right = listed and all(_is_whole(count, 1) for count in value)
            return None if right else "a list of stages: give the number of blocks of each, from 1"
        case "mlp_ratio" | "norm_eps":
            return None if _is_real(value) and 0 < value < math.inf else "a positive number"
        case "qk_scale":
            right = value is None or (_is_real(value) and -math.inf < value < math.inf and value != 0)
            return None if right else "a scale: give a number other than 0, or None for the default"
    return None


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and least <= int(value) < _MOST


def _is_real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _widths(arch: str, arguments: Mapping[str, Any]) -> Iterator[int]:
    """Yield the distinct numbers of input channels of the blocks."""
    width = arguments["embed_dim"]
    if arch != "T2TViTDense":
        yield width
        return
    for stage, blocks in enumerate(arguments["block_config"]):
        width = width // 2 if stage else width
        yield width
        width += blocks * arguments["growth_rate"]
