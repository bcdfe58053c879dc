"""Validation of model arguments, shared by both frameworks so that the same mistake raises the same ValueError."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from t2t_config.bounds import MOST_CHANNELS, check_bounds


def check_arguments(arch: str, arguments: Mapping[str, Any]) -> None:
    """Check the arguments that the class `arch` accepts; relations between tensor shapes are checked by the layers.

    Raises:
        ValueError: If an argument has the wrong type, is out of range, or too small for another; the message names it,
            its value and the allowed values.
    """
    check_bounds(arguments)
    widths = list(_widths(arch, arguments))
    ratio = arguments.get("mlp_ratio", 4.0)
    if not 1 <= min(widths) * ratio <= max(widths) * ratio < MOST_CHANNELS:
        raise ValueError(f"mlp_ratio {ratio!r} times embed_dim is not a number of channels: give one near 4")
    if arch == "T2TViTSE" and min(widths) < 16:
        raise ValueError(f"embed_dim {min(widths)} is too small to be squeezed to a 16th: give 16 or more")
    if arguments.get("tokens_type") == "performer" and arguments.get("token_dim", 64) < 2:
        raise ValueError("token_dim 1 is too small for a performer, which halves it: give 2 or more")
    stages, depth = len(arguments.get("block_config", ())), arguments.get("depth", 12)
    if stages > depth:
        raise ValueError(f"block_config has {stages} stages, more than depth {depth}: give a depth of {stages} or more")


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
