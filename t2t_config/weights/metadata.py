"""What weights say of themselves: one flat dictionary of JSON values, the same in every format.

`model`, `img_size` (a number for a square, else height and width), `in_chans`, `num_classes` and `overrides` make the
model again; `config` is the same written out (class and sizes); `mean`, `std`, `crop_pct` and `interpolation` prepare
its images. `recipe`, `metrics` and `parity` are there where they are known; anything else is carried along.
Orbax folders and config.json hold it as JSON; PyTorch files and safetensors, which know text only, as JSON per key.
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
"""What `create_model` takes of the metadata, besides `model` and `overrides`."""

IDENTITY = ("model", *ARGUMENTS, "overrides", "config")
"""What the model itself tells best."""


CARRIED = ("mean", "std", "crop_pct", "interpolation", "class_names")
"""What stays with a model whose weights were loaded: how its images are prepared, and what its outputs mean."""


TOLD_BY_MODELS = ("in_chans", "drop_rate", "attn_drop_rate", "drop_path_rate")
"""Arguments of `create_model` that the model itself tells, or that do not change what it computes in evaluation."""


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """What `create_model` made a model from, besides what the model itself tells (image size, channels, classes).

    Attributes:
        name: the official name.
        overrides: (argument, value), hashable.
        carried: what the weights that it was filled with say beside the model: (key of `CARRIED`, JSON). Models that
            differ in this alone are the same.
    """

    name: str
    overrides: tuple[tuple[str, Any], ...] = ()
    carried: tuple[tuple[str, str], ...] = dataclasses.field(default=(), compare=False)

    @classmethod
    def of(cls, name: str, overrides: Mapping[str, Any]) -> ModelSpec:
        """The spec of a call of `create_model`; aliases become official names, and what models tell is left out."""
        kept = ((key, _hashable(value)) for key, value in overrides.items() if key not in TOLD_BY_MODELS)
        return cls(ALIASES.get(name, name), tuple(kept))


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value


def take_preprocessing(model: Any, metadata: Mapping[str, Any], *, classes: bool) -> None:
    """Notes in a model of `create_model`, for `describe_model`, what the weights that now fill it say in `metadata`:
    `CARRIED`, as far as it fits. What earlier weights said is forgotten.

    Args:
        model: any other than of `create_model` is left as it is.
        metadata: of the weights.
        classes: whether the classifier is theirs; else the names of its classes are not.
    """
    spec = getattr(model, "spec", None)
    if not isinstance(spec, ModelSpec):
        return
    known = {key: metadata[key] for key in CARRIED if metadata.get(key) is not None and KINDS[key][1](metadata[key])}
    for key in ("mean", "std"):
        if len(known.get(key, ())) != model.in_chans:  # other channels, so other figures
            known.pop(key, None)
    if not classes or len(known.get("class_names", ())) > model.num_classes:
        known.pop("class_names", None)
    model.spec = dataclasses.replace(spec, carried=tuple((key, json.dumps(value)) for key, value in known.items()))


def describe_model(model: Any, known: Mapping[str, Any] | None = None) -> Metadata:
    """The metadata of a model that `create_model` (of either framework) made; of its preprocessing and the names of its
    classes what the weights said that it was last filled with.

    Args:
        model: tells its name, sizes and configuration.
        known: what else is known, JSON values: `recipe`, `metrics`, `parity`, and the preprocessing where it is not
            the model's own.

    Raises:
        ValueError: it was not made by `create_model`, so its name is not known; or `known` is of another model.
    """
    spec = getattr(model, "spec", None)
    if not isinstance(spec, ModelSpec):
        raise ValueError(f"this {type(model).__name__} does not tell its name: make it with create_model")
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
    """The metadata of `create_model(name, ...)`: sizes, the configuration written out, preprocessing.

    Images of one channel take the averages of the model's mean and std; of other channels neither is known.

    Raises:
        ValueError: unknown name.
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
    return json.loads(json.dumps(found))  # tuples become lists, as they will be when read back


def create_arguments(metadata: Metadata) -> dict[str, Any]:
    """Arguments with which `create_model` makes the model that `metadata` describes.

    Raises:
        ValueError: it does not name a model, or says what makes none.
    """
    check_metadata(metadata)
    if metadata.get("model") is None:
        raise ValueError("the weights do not say which model they belong to")
    sizes = {key: metadata[key] for key in ARGUMENTS if metadata.get(key) is not None}
    return {"name": metadata["model"], **sizes, **(metadata.get("overrides") or {})}


def to_text(metadata: Mapping[str, Any]) -> dict[str, str]:
    """`metadata` as text by key: text as it is where that can be told from JSON, everything else as JSON."""
    return {
        key: value if isinstance(value, str) and _is_utf8(value) and _from_text(value) == value else json.dumps(value)
        for key, value in metadata.items()
    }


def _is_utf8(text: str) -> bool:
    """Whether formats can hold it that know UTF-8 only: a path whose bytes are none cannot be held."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def from_text(texts: Mapping[str, str]) -> Metadata:
    """The inverse of `to_text`; Python literals, which earlier files hold, are understood too."""
    return {key: _from_text(text) for key, text in texts.items()}


def _from_text(text: str) -> Any:
    for understand in (parse, _literal):
        try:
            return understand(text)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
    return text


def _literal(text: str) -> Any:
    """A Python literal, whose parser is not asked for brackets within brackets."""
    depths = itertools.accumulate((letter in "([{") - (letter in ")]}") for letter in text)
    if max(depths, default=0) > MAX_DEPTH:
        raise ValueError("too deep")
    value = ast.literal_eval(text)
    check_depth(value)
    return value
