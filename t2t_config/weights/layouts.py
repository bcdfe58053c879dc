"""Naming schemes of checkpoint files: one table of renames to the official names, for both frameworks.

Sources of the names: open-mmlab/mmpretrain (mmpretrain/models/backbones/t2t_vit.py), timm's pull request 2426
(timm/models/t2t_vit.py), BR-IDL/PaddleViT (image_classification/T2T_ViT/t2t_vit.py and load_pytorch_weights.py),
zihangJiang/TokenLabeling (tlt/models/lvvit.py, for `aux_head`).

Only names are converted: all weights run in the official model. PaddleViT runs the official weights with LayerNorm eps
1e-6 instead of 1e-5, and mmpretrain 1.x scales its token transformers by head_dim^-0.5 whatever scale is passed.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from t2t_config.text import readable


@dataclasses.dataclass(frozen=True)
class Layout:
    """Naming scheme of one project.

    Attributes:
        name: Name used in reports.
        mark: Regular expression; a file with a matching name has this layout.
        renames: Regular expression -> official spelling, applied to every name in this order.
        transposed: Whether matrices are stored as (in, out); the performers' `w` never is.
    """

    name: str
    mark: str
    renames: Mapping[str, str] = dataclasses.field(default_factory=dict)
    transposed: bool = False


LAYOUTS = (
    Layout(
        "mmpretrain",
        mark=r"^(backbone\.)?encoder\.\d+\.ln1\.",
        renames={
            r"^backbone\.": "",
            r"^encoder\.": "blocks.",
            r"\.ln([12])\.": r".norm\1.",
            r"\.ffn\.layers\.0\.0\.": ".mlp.fc1.",
            r"\.ffn\.layers\.1\.": ".mlp.fc2.",
            r"^head\.layers\.head\.": "head.",
        },
    ),
    Layout(
        "timm pull request",
        mark=r"^patch_embed\.attention1\.",
        renames={r"^patch_embed\.": "tokens_to_token."},
    ),
    Layout(
        "PaddleViT",
        mark=r"^patch_embed\.attn1\.",
        renames={
            r"^patch_embed\.attn([12])\.": r"tokens_to_token.attention\1.",
            r"^patch_embed\.proj\.": "tokens_to_token.project.",
        },
        transposed=True,
    ),
    Layout("token labeling", mark=r"^aux_head\."),
)

OFFICIAL = Layout("official", mark="")

WRAPPERS = ("module.", "_orig_mod.", "model.", "net.")
"""Prefixes that DataParallel and AveragedModel, torch.compile, and a LightningModule's attribute add to all names."""
MOST_WRAPPERS = 4
"""Maximum number of prefixes removed, as names may consist of nothing else."""

COUNTERS = re.compile(r"(^|\.)(n_averaged|total_ops|total_params)$")
"""Counters that AveragedModel and thop store among the weights, for the module itself or each of its submodules."""


@dataclasses.dataclass(frozen=True)
class Unwrapped:
    """Weights without the additions of tools.

    Attributes:
        weights: Weights by the model's own names.
        prefix: Prefix removed from every name.
        counters: Names, as in the file, of counters added by a tool, which the model does not use.
    """

    weights: dict[str, Any]
    prefix: str = ""
    counters: tuple[str, ...] = ()


def unwrap(weights: Mapping[str, Any]) -> Unwrapped:
    """Remove prefixes shared by all names (`WRAPPERS`), and scalars and vectors whose names match `COUNTERS`.

    Args:
        weights: name -> array of any framework that has `ndim`.
    """
    counters = [name for name, value in weights.items() if value.ndim < 2 and COUNTERS.search(name)]
    left, prefix = {name: value for name, value in weights.items() if name not in counters}, ""
    for _ in range(MOST_WRAPPERS if left else 0):
        found = next((p for p in WRAPPERS if all(name.startswith(p) for name in left)), "")
        left = {name.removeprefix(found): value for name, value in left.items()}
        prefix += found
    return Unwrapped(left, prefix, tuple(counters))


def recognise(names: Mapping[str, Any]) -> Layout:
    """Return the layout of a file with these names; the official one if no other layout's mark matches."""
    return next((layout for layout in LAYOUTS if any(re.search(layout.mark, name) for name in names)), OFFICIAL)


def to_official(weights: Mapping[str, Any]) -> tuple[dict[str, Any], Layout]:
    """Return the weights under official names, with matrices in PyTorch's layout (out, in), and the layout of the file.

    Args:
        weights: name -> array of any framework that has `ndim` and `T`; additions of tools are removed (see `unwrap`).

    Raises:
        ValueError: If two names become the same.
    """
    renamed = unwrap(weights).weights
    layout = recognise(renamed)
    official: dict[str, Any] = {}
    for name, value in renamed.items():
        for pattern, spelling in layout.renames.items():
            name = re.sub(pattern, spelling, name)
        if name in official:
            raise ValueError(f"two tensors are called {readable(name)} in {layout.name} layout")
        turned = layout.transposed and value.ndim == 2 and not name.endswith(".w")
        official[name] = value.T if turned else value
    return official, layout
