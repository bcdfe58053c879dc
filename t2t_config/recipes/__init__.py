"""Training recipes as data, shared by `t2t_jax` and `t2t_torch`."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from t2t_config.models import MODELS
from t2t_config.pretrained import PRETRAINED
from t2t_config.recipes.base import ExpectedClasses, FromData, Recipe, epoch_lr
from t2t_config.recipes.changes import recipe_changes
from t2t_config.recipes.digits import digits, fashion_mnist
from t2t_config.recipes.imagenet import deit, finetune_384, imagenet, t2t, t2t_384, token_labeling
from t2t_config.recipes.own_images import fit_to_data, own
from t2t_config.recipes.transfer import cifar
from t2t_config.text import readable

__all__ = [
    "RECIPES",
    "ExpectedClasses",
    "FromData",
    "Recipe",
    "describe_recipe",
    "epoch_lr",
    "fit_to_data",
    "imagenet",
    "recipe",
    "recipe_changes",
]


class _Entry(NamedTuple):
    recipe: Recipe
    text: str


def _entry(
    name: str, make: Callable[..., Recipe], *arguments: object, top1: float | None = None, **facts: object
) -> tuple[str, _Entry]:
    """Return a name, its recipe and its text: the docstring of `make` with the placeholders filled in."""
    expect = "No top-1 is published for this recipe." if top1 is None else f"The authors' published top-1 is {top1} %."
    text = inspect.cleandoc(make.__doc__ or "").format(
        command=f"python -m t2t_jax.train {name}", expect=expect, **facts
    )
    return name, _Entry(make(*arguments), text)


def _published(model: str, tag: str = "in1k") -> float | None:
    return PRETRAINED[model][tag].top1


_T2T = [name for name, config in MODELS.items() if name.startswith("t2t_") and config.in_paper]
_DEIT = [f"vit_deit_{size}_patch16_224" for size in ("tiny", "small", "base")]
_VIT = [
    *("vit_small_patch16_224", "vit_base_patch16_224", "vit_base_patch32_224"),
    *("vit_large_patch16_224", "vit_large_patch32_224"),
]

_ENTRIES: Mapping[str, _Entry] = dict(
    [
        _entry("digits", digits),
        _entry("fashion_mnist", fashion_mnist),
        _entry("own", own),
        *(_entry(f"imagenet_{model}", t2t, model, top1=MODELS[model].top1) for model in _T2T),
        _entry("imagenet_t2t_vit_14_384", t2t_384, "t2t_vit_14", top1=_published("t2t_vit_14", "in1k_384")),
        _entry(
            "imagenet_t2t_vit_24_token_labeling",
            token_labeling,
            "t2t_vit_24",
            top1=_published("t2t_vit_24", "token_labeling"),
        ),
        *(_entry(f"imagenet_{model}", deit, model, top1=_published(model)) for model in _DEIT),
        *(_entry(f"imagenet_{model}", deit, model) for model in _VIT),
        _entry(
            "finetune_t2t_vit_14_384",
            finetune_384,
            "t2t_vit_14",
            note="T2T-ViT's authors publish none: their 83.3 % at 384 px are of\na model trained at that size from "
            "scratch (imagenet_t2t_vit_14_384).",
        ),
        _entry(
            "finetune_vit_deit_base_384",
            finetune_384,
            "vit_deit_base_patch16_384",
            top1=_published("vit_deit_base_patch16_384"),
            note="The top-1 above is that\nof the released weights; the authors' paper has 83.1 %.",
        ),
        *(
            _entry(f"{data}_{model}", cifar, model, num_classes, top1=_published(model, data), num_classes=num_classes)
            for data, num_classes in (("cifar10", 10), ("cifar100", 100))
            for model in ("t2t_vit_14", "t2t_vit_19")
        ),
    ]
)

RECIPES: Mapping[str, Recipe] = MappingProxyType({name: entry.recipe for name, entry in _ENTRIES.items()})
"""All recipes by name."""


def recipe(name: str) -> Recipe:
    """Return the recipe called `name`.

    Raises:
        ValueError: If the name is unknown; the message suggests the closest ones.
    """
    return _find(name).recipe


def describe_recipe(name: str, package: str = "t2t_jax") -> str:
    """Return the command of `package` that runs the recipe, and the accuracy published by its authors, as text.

    Raises:
        ValueError: If the name is unknown; the message suggests the closest ones.
    """
    return _find(name).text.replace("t2t_jax.train", f"{package}.train")


def _find(name: str) -> _Entry:
    if name not in _ENTRIES:
        near = difflib.get_close_matches(name, _ENTRIES, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else f"choose one of {', '.join(_ENTRIES)}"
        raise ValueError(f"unknown recipe {readable(name)!r}: {hint}")
    return _ENTRIES[name]
