"""Checks of untrusted metadata before a model is created from it, to limit time and memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from t2t_config.models import model_arguments
from t2t_config.shapes import to_pair
from t2t_config.text import first_line, readable

MOST_SIZE, MOST_DEPTH, MOST_SIDE, MOST_CLASSES = 1 << 16, 512, 1 << 14, 1 << 20
"""Maximum width, depth, side in pixels and number of classes, beyond all known models."""

MAX_EXPANSION = 10
"""Maximum ratio of a model's size to its file's: weights are not compressed, but they may be float16."""
ALWAYS = 1 << 26
"""Model size in bytes that is always allowed."""

NOT_OVERRIDES = ("name", "model", "pretrained", "dtype", "param_dtype", "rngs", "scan_blocks")
"""Arguments of `create_model` that do not describe the model, so weights cannot set them."""


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and len(value) <= 100


def _is_int(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= MOST_SIZE  # NaN is not


def _is_side(value: Any) -> bool:
    sides = value if isinstance(value, list | tuple) else [value]
    return len(sides) in (1, 2) and all(_is_int(side, 1, MOST_SIDE) for side in sides)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) <= 16 and all(map(_is_number, value))


def _are_overrides(value: Any) -> bool:
    if not isinstance(value, dict) or any(name in value for name in NOT_OVERRIDES):
        return False
    plain = all(
        item is None or isinstance(item, str) or _is_number(item) or _are_numbers(item) or isinstance(item, bool)
        for item in value.values()
    )
    return plain and value.get("depth", 1) is not None and _is_int(value.get("depth", 1), 0, MOST_DEPTH)


KINDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "model": ("a name", _is_name),
    "img_size": (f"one or two numbers of pixels up to {MOST_SIDE}", _is_side),
    "in_chans": ("a number of channels", lambda value: _is_int(value, 1, 1024)),
    "num_classes": (f"a number up to {MOST_CLASSES}", lambda value: _is_int(value, 0, MOST_CLASSES)),
    "overrides": ("arguments of a model by name", _are_overrides),
    "aux_head": ("true or false", lambda value: isinstance(value, bool)),
    "mean": ("a list of numbers", _are_numbers),
    "std": ("a list of numbers", _are_numbers),
    "crop_pct": ("a number", _is_number),
    "interpolation": ("a name", _is_name),
    "class_names": (
        "a list of names",
        lambda value: isinstance(value, list) and all(isinstance(x, str) for x in value),
    ),
}
"""Key of the metadata -> description of its valid values, and check (see metadata.py)."""


def check_metadata(metadata: Mapping[str, Any]) -> None:
    """Raise ValueError if an entry that defines a model or its preprocessing has the wrong type or range."""
    for key, (kind, fits) in KINDS.items():
        if metadata.get(key) is not None and not fits(metadata[key]):
            raise ValueError(f"the weights say {key} {readable(str(metadata[key])[:200])!r} instead of {kind}")


def check_table(arguments: Mapping[str, Any], num_bytes: int) -> None:
    """Raise ValueError if the position table alone of `create_model(**arguments)` is far larger than its file."""
    own = dict(arguments)
    name, img_size, num_classes = own.pop("name"), own.pop("img_size", None), own.pop("num_classes", None)
    _, sizes = model_arguments(name, img_size=img_size, num_classes=num_classes, overrides=own)
    height, width = (side // max(1, int(sizes.get("patch_size") or 16)) + 2 for side in to_pair(sizes["img_size"]))
    blocks = sum(map(int, sizes.get("block_config") or ()))
    wide = int(sizes["embed_dim"]) + int(sizes.get("growth_rate") or 0) * blocks
    if blocks > MOST_DEPTH:
        raise ValueError(f"{blocks} blocks are more than {MOST_DEPTH}")
    check_size(8 * height * width * wide, num_bytes)


def check_size(model_bytes: int, num_bytes: int) -> None:
    """Raise ValueError if a model of `model_bytes` is far larger than its file of `num_bytes`."""
    if model_bytes > max(ALWAYS, MAX_EXPANSION * num_bytes):
        raise ValueError(f"a model of {model_bytes:,} bytes is not in a file of {num_bytes:,}")


@contextlib.contextmanager
def making(path: Path) -> Iterator[None]:
    """Context manager for creating a model as described by `path`: invalid sizes raise almost any exception.

    Raises:
        ValueError: For any exception in the body; the message names the file.
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    except Exception as error:
        reason = readable(first_line(error), 200)
        raise ValueError(f"{path} describes an invalid model ({reason}): get another copy") from error
