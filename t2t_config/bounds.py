"""Valid values of model arguments and recipe fields: one table, so that `create_model` and `Recipe` agree.

What one value must satisfy is here; relations between several are checked by `t2t_config/arguments.py` and `Recipe`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from types import MappingProxyType
from typing import Any, NamedTuple

MOST_CHANNELS = 2**31
"""Upper bound on the number of channels, and on all sizes of a model."""

LEAST_STD = 1e-6
"""Minimum standard deviation of pixels; a smaller one would scale them to values that no model can handle."""

_LARGEST = 3.4e38
"""Largest float32, rounded down."""


class Bound(NamedTuple):
    """Valid values of one argument.

    Attributes:
        is_valid: Returns whether a value is valid.
        expected: Description of the valid values that completes "VALUE is not ...".
    """

    is_valid: Callable[[Any], bool]
    expected: str


def check_bounds(values: Mapping[str, Any]) -> None:
    """Check each value by itself; names that are not in `BOUNDS` are not checked.

    Raises:
        ValueError: If a value has the wrong type or is out of range; the message names it and the valid values.
    """
    for name, value in values.items():
        bound = BOUNDS.get(name)
        if bound is not None and not bound.is_valid(value):
            raise ValueError(f"{name} {value!r} is not {bound.expected}")


def _is_whole(value: Any, least: int, below: float) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and least <= int(value) < below


def _is_finite(value: Any) -> bool:
    """Return whether `value` is a real number, of Python or NumPy, that is finite in float32."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    return is_number and abs(value) <= _LARGEST


def _is_size(value: Any) -> bool:
    return _is_whole(value, 1, MOST_CHANNELS)


def _is_positive(value: Any) -> bool:
    return _is_finite(value) and value > 0


def _are(is_valid: Callable[[Any], bool], values: Any) -> bool:
    """Return whether `values` is a sequence of valid values that is not empty."""
    return isinstance(values, Sequence) and len(values) > 0 and all(map(is_valid, values))


_SIZE = Bound(_is_size, "a whole number from 1")
_COUNT = Bound(lambda value: _is_whole(value, 1, math.inf), "a whole number from 1")
_COUNT_FROM_0 = Bound(lambda value: _is_whole(value, 0, math.inf), "a whole number from 0")
_PROBABILITY = Bound(lambda value: _is_finite(value) and 0 <= value <= 1, "a probability: give a number from 0 to 1")
_BELOW_1 = Bound(lambda value: _is_finite(value) and 0 <= value < 1, "a number from 0 to below 1")
_FROM_0 = Bound(lambda value: _is_finite(value) and value >= 0, "a number from 0 that is finite in float32")
_POSITIVE = Bound(_is_positive, "a positive number that is finite in float32")
_RANGE = Bound(
    lambda value: _are(_is_positive, value) and len(value) == 2 and value[0] <= value[1],
    "two positive numbers, the smaller first",
)
_FLAG = Bound(lambda value: isinstance(value, bool), "True or False")

_MODELS: Mapping[str, Bound] = {
    **dict.fromkeys(("in_chans", "embed_dim", "depth", "num_heads", "token_dim", "patch_size", "growth_rate"), _SIZE),
    **dict.fromkeys(("drop_rate", "attn_drop_rate", "drop_path_rate", "performer_drop_rate"), _PROBABILITY),
    **dict.fromkeys(("qkv_bias", "distilled", "aux_head"), _FLAG),
    **dict.fromkeys(("mlp_ratio", "norm_eps"), _POSITIVE),
    "num_classes": Bound(
        lambda value: _is_whole(value, 0, MOST_CHANNELS), "a number of classes: give a whole number from 0"
    ),
    "representation_size": Bound(
        lambda value: value is None or _is_whole(value, 0, MOST_CHANNELS), "a number of channels, nor None"
    ),
    "img_size": Bound(
        lambda value: (
            _is_size(value) or (isinstance(value, tuple | list) and len(value) == 2 and _are(_is_size, value))
        ),
        "a size in pixels: give a whole number from 1, or (height, width)",
    ),
    "block_config": Bound(
        lambda value: _are(_is_size, value), "a list of stages: give the number of blocks of each, from 1"
    ),
    "qk_scale": Bound(
        lambda value: value is None or (_is_finite(value) and value != 0),
        "a scale: give a number other than 0, or None for the default",
    ),
}

_RECIPES: Mapping[str, Bound] = {
    **dict.fromkeys(("epochs", "batch_size", "grad_accum_steps", "repeated_aug", "mixup_group"), _COUNT),
    **dict.fromkeys(("log_every", "eval_every", "checkpoint_every", "checkpoint_every_steps"), _COUNT),
    "keep_checkpoints": _COUNT,
    **dict.fromkeys(("cooldown_epochs", "warmup_epochs", "seed", "max_corrupt_images"), _COUNT_FROM_0),
    **dict.fromkeys(("data_threads", "data_workers", "device_prefetch"), _COUNT_FROM_0),
    **dict.fromkeys(("lr", "min_lr", "warmup_lr", "backbone_lr_scale", "weight_decay"), _FROM_0),
    **dict.fromkeys(("padding", "max_shift", "max_turn", "mixup", "cutmix", "mix_token", "dense_weight"), _FROM_0),
    **dict.fromkeys(("label_smoothing", "b1", "b2", "momentum", "max_zoom"), _BELOW_1),
    **dict.fromkeys(("hflip", "mixup_prob", "mixup_switch_prob", "re_prob"), _PROBABILITY),
    **dict.fromkeys(("eps", "clip_grad", "data_timeout"), _POSITIVE),
    **dict.fromkeys(("scale", "ratio"), _RANGE),
    **dict.fromkeys(("decay_all", "remat", "scan_blocks", "keep_best"), _FLAG),
    "layer_decay": Bound(lambda value: _is_positive(value) and value <= 1, "a ratio: give a number above 0, up to 1"),
    "val_fraction": Bound(lambda value: _is_positive(value) and value < 1, "a fraction above 0 and below 1"),
    "ema_decay": Bound(lambda value: _is_positive(value) and value < 1, "a number above 0 and below 1"),
    "crop_pct": Bound(lambda value: _is_positive(value) and value <= 1, "a share: give a number above 0, up to 1"),
    "mean": Bound(lambda value: _are(_is_finite, value), "finite: give the mean of pixels in 0..1, one per channel"),
    "std": Bound(
        lambda value: _are(lambda std: _is_positive(std) and std >= LEAST_STD, value),
        "positive: pixels are divided by it; give numbers above 0, one per channel",
    ),
}

BOUNDS: Mapping[str, Bound] = MappingProxyType({**_MODELS, **_RECIPES})
"""Valid values by name. A name means the same to a model, a recipe and an augmentation."""
