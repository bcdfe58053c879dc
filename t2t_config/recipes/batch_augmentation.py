"""Settings of what a training step does to a whole batch: mixup, cutmix, random erasing, token labeling.

Both packages derive their classes of the same names from these, and add the sampling and the computation.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, Self

from t2t_config.recipes.base import Recipe
from t2t_config.shapes import soft_split_grids, to_pair


@dataclasses.dataclass(frozen=True)
class MixupSettings:
    """Settings of mixup and cutmix.

    Raises:
        ValueError: Neither mixup nor cutmix is on, or a parameter is out of range.
    """

    mixup_alpha: float = 1.0
    """Both parameters of mixup's beta distribution; 0 turns it off."""
    cutmix_alpha: float = 0.0
    """Both parameters of cutmix's beta distribution; 0 turns it off."""
    prob: float = 1.0
    """Probability of applying mixup or cutmix."""
    switch_prob: float = 0.5
    """Probability of cutmix if both are on."""
    mode: Literal["batch", "pair", "elem"] = "batch"
    """Whether draws are shared by the whole batch, by the two images of a pair, or not at all."""
    label_smoothing: float = 0.1
    """Share of the target distributed over all classes, for integer labels."""
    num_classes: int = 1000
    group: int | None = None
    """Number of consecutive images that are paired with their flipped order; None for the whole batch."""

    def __post_init__(self) -> None:
        if min(self.mixup_alpha, self.cutmix_alpha) < 0 or self.mixup_alpha == self.cutmix_alpha == 0:
            alphas = f"mixup_alpha {self.mixup_alpha} and cutmix_alpha {self.cutmix_alpha}"
            raise ValueError(f"{alphas} must not be negative, and one must be positive")
        for name in ("prob", "switch_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if self.mode not in ("batch", "pair", "elem"):
            raise ValueError(f"mode {self.mode!r} is not one of batch, pair, elem")
        if self.group is not None and (self.group < 2 or self.group % 2):
            raise ValueError(f"group must be even and positive, got {self.group}")

    @classmethod
    def of_recipe(cls, recipe: Recipe) -> Self | None:
        """Return the mixup and cutmix of `recipe`, whose num_classes must be set; None if disabled."""
        if not recipe.mixes or recipe.num_classes is None:
            return None
        return cls(
            mixup_alpha=recipe.mixup,
            cutmix_alpha=recipe.cutmix,
            prob=recipe.mixup_prob,
            switch_prob=recipe.mixup_switch_prob,
            mode=recipe.mixup_mode,
            label_smoothing=recipe.label_smoothing,
            num_classes=recipe.num_classes,
            group=recipe.mixup_group,
        )


@dataclasses.dataclass(frozen=True)
class ErasingSettings:
    """Settings of random erasing.

    Raises:
        ValueError: A parameter is out of range.
    """

    probability: float = 0.5
    """Probability that an image is changed."""
    min_area: float = 0.02
    """Smallest area, as a share of the image."""
    max_area: float = 1 / 3
    """Largest area, as a share of the image."""
    min_aspect: float = 0.3
    """Smallest height / width; the largest is its inverse."""

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability must lie in [0, 1], got {self.probability}")
        if not 0 < self.min_area <= self.max_area:
            raise ValueError(f"areas must be positive, the smaller first, got {self.min_area}, {self.max_area}")
        if not 0 < self.min_aspect <= 1:
            raise ValueError(f"min_aspect must lie in (0, 1], got {self.min_aspect}")

    @classmethod
    def of_recipe(cls, recipe: Recipe) -> Self | None:
        """Return the random erasing of `recipe`; None if disabled."""
        return cls(recipe.re_prob) if recipe.re_prob else None


@dataclasses.dataclass(frozen=True)
class TokenLabelingSettings:
    """Settings of token labeling and MixToken."""

    num_classes: int
    grid: tuple[int, int]
    """Numbers of rows and columns of the model's tokens."""
    dense_weight: float = 0.5
    """Weight of the token loss."""
    mix_token: float = 1.0
    """Both parameters of MixToken's beta distribution, 1 upstream; 0 turns it off."""
    label_smoothing: float = 0.1
    group: int | None = None
    """Number of consecutive images that are paired with their flipped order; None for the whole batch."""

    @classmethod
    def of_recipe(cls, recipe: Recipe) -> Self | None:
        """Return the token labeling of `recipe`, whose num_classes must be set; None if disabled."""
        if not recipe.aux_head or recipe.num_classes is None:
            return None
        return cls(
            num_classes=recipe.num_classes,
            grid=soft_split_grids(to_pair(recipe.img_size))[-1],
            dense_weight=recipe.dense_weight,
            mix_token=recipe.mix_token,
            label_smoothing=recipe.label_smoothing,
            group=recipe.mixup_group,
        )
