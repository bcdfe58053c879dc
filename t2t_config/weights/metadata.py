"""Metadata of weights: one flat dictionary of JSON values, the same in every format.

`model`, `img_size` (a number for a square, else height and width), `in_chans`, `num_classes` and `overrides` recreate
the model; `config` is the same written out (class and sizes); `mean`, `std`, `crop_pct` and `interpolation` are its
preprocessing. `recipe`, `metrics` and `parity` are present if known; any other entry is preserved. Orbax folders and
config.json store it as JSON; PyTorch files and safetensors, which support only text, as JSON per key.
"""

from __future__ import annotations

import ast
import dataclasses
import itertools
import json
from collections.abc import Mapping
from typing import Any

from t2t_config.models import ALIASES, model_arguments, model_config
from t2t_config.shapes import to_pair
from t2t_config.weights.json_limits import MAX_DEPTH, check_depth, parse
from t2t_config.weights.untrusted import KINDS, check_metadata

Metadata = dict[str, Any]

ARGUMENTS = ("img_size", "in_chans", "num_classes")
"""Keys that `create_model` takes from the metadata, besides `model` and `overrides`."""

IDENTITY = ("model", *ARGUMENTS, "overrides", "config")
"""Keys for which the model itself is the best source."""


CARRIED = ("mean", "std", "crop_pct", "interpolation", "class_names")
"""Keys kept with a model whose weights were loaded: its preprocessing and the meaning of its outputs."""


READ_FROM_MODEL = ("in_chans", "drop_rate", "attn_drop_rate", "drop_path_rate")
"""Arguments of `create_model` that can be read from the model, or do not affect its output in evaluation mode."""


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """Arguments from which `create_model` created a model, without those stored in it (image size, channels, classes).

    Attributes:
        name: Official name.
        overrides: (argument, value), hashable.
        carried: Metadata of the weights loaded last: (key of `CARRIED`, JSON). Ignored in comparisons.
    """

    name: str
    overrides: tuple[tuple[str, Any], ...] = ()
    carried: tuple[tuple[str, str], ...] = dataclasses.field(default=(), compare=False)

    @classmethod
    def of(cls, name: str, overrides: Mapping[str, Any]) -> ModelSpec:
        """Return the spec of a call of `create_model`, by official name, without the arguments in READ_FROM_MODEL."""
        kept = ((key, _hashable(value)) for key, value in overrides.items() if key not in READ_FROM_MODEL)
        return cls(ALIASES.get(name, name), tuple(kept))


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value


def take_preprocessing(model: Any, metadata: Mapping[str, Any], *, classes: bool) -> None:
    """Store in a model, for `describe_model`, those entries (`CARRIED`) of its weights' `metadata` that fit it.

    Entries of previously loaded weights are discarded.

    Args:
        model: Model; one not created by `create_model` is left unchanged.
        metadata: Metadata of the weights.
        classes: Whether the classifier was loaded too; otherwise the class names are not stored.
    """
    spec = getattr(model, "spec", None)
    if not isinstance(spec, ModelSpec):
        return
    known = {key: metadata[key] for key in CARRIED if metadata.get(key) is not None and KINDS[key][1](metadata[key])}
    for key in ("mean", "std"):
        if len(known.get(key, ())) != model.in_chans:  # other number of channels, so other values
            known.pop(key, None)
    if not classes or len(known.get("class_names", ())) > model.num_classes:
        known.pop("class_names", None)
    model.spec = dataclasses.replace(spec, carried=tuple((key, json.dumps(value)) for key, value in known.items()))


def describe_model(model: Any, known: Mapping[str, Any] | None = None) -> Metadata:
    """Return the metadata of a model that `create_model` (of either framework) created.

    Its preprocessing and class names are those of the weights that were loaded last.

    Args:
        model: Model, for its name, sizes and configuration.
        known: Additional JSON values: `recipe`, `metrics`, `parity`, and the preprocessing if it is not the model's
            own.

    Raises:
        ValueError: If the model was not created by `create_model`, so its name is unknown, or `known` is for another
            model.
    """
    spec = getattr(model, "spec", None)
    if not isinstance(spec, ModelSpec):
        raise ValueError(f"this {type(model).__name__} has no known name: create it with create_model")
    known = dict(known or {})
    if known.get("model") not in (None, spec.name):
        raise ValueError(f"the metadata are of {known['model']}, the model is {spec.name}: pass those of the model")
    sizes = {name: getattr(model, name) for name in ARGUMENTS}
    own = describe(spec.name, **sizes, **dict(spec.overrides))
    own |= {key: json.loads(text) for key, text in spec.carried}
    return {**own, **{key: value for key, value in known.items() if key not in IDENTITY}}


def describe(
    name: str,
    *,
    img_size: int | tuple[int, int] | None = None,
    in_chans: int = 3,
    num_classes: int | None = None,
    **overrides: Any,
) -> Metadata:
    """Return the metadata of `create_model(name, ...)`: sizes, the configuration written out, preprocessing.

    For one channel, the model's mean and std are averaged; for other numbers of channels both are unknown.

    Raises:
        ValueError: If the name is unknown.
    """
    config = model_config(name)
    arch, sizes = model_arguments(name, img_size=img_size, num_classes=num_classes, overrides=overrides)
    height, width = to_pair(sizes.pop("img_size"))
    found: Metadata = {
        "model": ALIASES.get(name, name),
        "img_size": height if height == width else [height, width],
        "in_chans": in_chans,
        "num_classes": sizes.pop("num_classes"),
        "overrides": dict(overrides),
        "config": {"arch": arch, **sizes},
        "crop_pct": config.crop_pct,
        "interpolation": config.interpolation,
    }
    for key, figures in (("mean", config.mean), ("std", config.std)):
        if in_chans in (1, 3):
            found[key] = figures if in_chans == 3 else (sum(figures) / 3,)
    return json.loads(json.dumps(found))  # tuples become lists, as after reading the metadata back


def create_arguments(metadata: Metadata) -> dict[str, Any]:
    """Return the arguments with which `create_model` creates the model that `metadata` describes.

    Raises:
        ValueError: If it does not name a model, or describes an invalid one.
    """
    check_metadata(metadata)
    if metadata.get("model") is None:
        raise ValueError("the weights do not say which model they belong to")
    sizes = {key: metadata[key] for key in ARGUMENTS if metadata.get(key) is not None}
    return {"name": metadata["model"], **sizes, **(metadata.get("overrides") or {})}


def to_text(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return `metadata` as text by key: strings unless they could be mistaken for JSON, everything else as JSON."""
    return {
        key: value if isinstance(value, str) and _is_utf8(value) and _from_text(value) == value else json.dumps(value)
        for key, value in metadata.items()
    }


def _is_utf8(text: str) -> bool:
    """Return whether `text` can be stored as UTF-8; a path with bytes that are not UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def from_text(texts: Mapping[str, str]) -> Metadata:
    """Inverse of `to_text`; Python literals, as in older files, are accepted too."""
    return {key: _from_text(text) for key, text in texts.items()}


def _from_text(text: str) -> Any:
    for understand in (parse, _literal):
        try:
            return understand(text)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
    return text


def _literal(text: str) -> Any:
    """Parse a Python literal, after checking its nesting depth."""
    depths = itertools.accumulate((letter in "([{") - (letter in ")]}") for letter in text)
    if max(depths, default=0) > MAX_DEPTH:
        raise ValueError("too deep")
    value = ast.literal_eval(text)
    check_depth(value)
    return value
