"""Token labeling (arXiv 2104.10858): soft targets for every token, the box of MixToken, the loss of both heads.

Source: zihangJiang/TokenLabeling: tlt/data/mixup.py (targets), tlt/loss/cross_entropy.py.
Twin: t2t_jax/training/token_labeling.py.
Shapes: B batch, N tokens on a grid, C channels or classes, K labels of a cell, H W cells of a map.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from t2t_torch.models.mix_token import MixToken, flip_groups
from t2t_torch.training.loss import cross_entropy


def draw_mix_token(
    rng: np.random.Generator, grid: tuple[int, int], *, alpha: float = 1.0, group: int | None = None
) -> MixToken:
    """The box that `rng` decides, for a whole batch, as upstream's; its share of the grid is 1 - Beta(alpha, alpha)."""
    centre = int(rng.integers(grid[0])), int(rng.integers(grid[1]))
    return rand_bbox(grid, rng.beta(alpha, alpha), centre, group)


def rand_bbox(grid: tuple[int, int], lam: float, centre: tuple[int, int], group: int | None = None) -> MixToken:
    """The box of share 1 - `lam` around `centre` (row, column), clipped at the grid's borders.

    As upstream, a side of odd length loses one: both halves are rounded down.
    """

    def edges(size: int, middle: int) -> tuple[int, int]:
        half = int(size * math.sqrt(1 - lam)) // 2
        return max(middle - half, 0), min(middle + half, size)

    return MixToken(*edges(grid[0], centre[0]), *edges(grid[1], centre[1]), group)


# ---- targets ----


def token_targets(
    scores: Tensor,
    classes: Tensor,
    crops: Tensor,
    *,
    num_classes: int,
    grid: tuple[int, int],
    smoothing: float = 0.0,
) -> Tensor:
    """Targets (B, 1 + N, num_classes) from label maps: of the class token over the whole crop, then of every token.

    A map is cropped as its image was, by RoIAlign (arXiv 1703.06870) of its scores, 0 for the classes that a cell does
    not name; a softmax over the classes makes targets of them.

    Two ways of upstream's: smoothing adds s / n to targets that it has scaled by 1 - s + s / n, so they sum to
    1 + s / n (kept); and RoIAlign gets top and left where it wants left and top, so that what it crops is another
    place of the map wherever a crop is off the diagonal (corrected here).

    Args:
        scores: (B, K, H, W), scores of the K best classes of each cell, before any softmax.
        classes: (B, K, H, W), which classes these are.
        crops: (B, 4), top, bottom, left, right of the crops, as shares of the image's height and width.
        num_classes: of the targets.
        grid: rows and columns of tokens.
        smoothing: share of the target spread over all classes.
    """
    B, _, H, W = scores.shape
    dense = scores.new_zeros((B, num_classes, H, W)).scatter(1, classes.long(), scores).permute(0, 2, 3, 1)
    crops = crops.to(scores.dtype)
    found = torch.cat([roi_align(dense, crops, bins) for bins in ((1, 1), grid)], dim=1)
    rest = smoothing / num_classes
    return found.softmax(dim=-1) * (1 - smoothing + rest) + rest


def roi_align(dense: Tensor, crops: Tensor, bins: tuple[int, int]) -> Tensor:
    """torchvision's `roi_align` (aligned False, adaptive sampling), upstream's half cell subtracted.

    Maps (B, H, W, C) -> (B, N, C): bilinear samples at even distances, averaged within each of the N = rows * columns
    bins. What averages rows does not depend on columns, so it is two matrix products.
    """
    H, W = dense.shape[1:3]
    rows = _bin_weights(crops[:, :2] * H - 0.5, H, bins[0])
    columns = _bin_weights(crops[:, 2:] * W - 0.5, W, bins[1])
    return torch.einsum("bph,bqw,bhwc->bpqc", rows, columns, dense).flatten(1, 2)


def _bin_weights(edges: Tensor, cells: int, bins: int) -> Tensor:
    """What each of `cells` weighs in each bin between the two edges (B, 2): (B, bins, cells)."""
    low, high = edges[:, :1, None], edges[:, 1:, None]
    side = (high - low).clamp(min=1.0) / bins
    most = -(-cells // bins)
    samples = side.ceil().clamp(max=most)
    bin_, sample = (torch.arange(n, device=edges.device, dtype=edges.dtype) for n in (bins, most))
    places = low + side * (bin_[:, None] + (sample + 0.5) / samples)  # (B, bins, samples)
    counts = (sample < samples) & (places >= -1) & (places <= cells)
    cell = torch.arange(cells, device=edges.device, dtype=edges.dtype)
    weights = (1 - (places.clamp(0, cells - 1)[..., None] - cell).abs()).clamp(min=0)
    return (weights * counts[..., None]).sum(dim=2) / samples


# ---- loss ----


def token_label_cross_entropy(
    logits: Tensor,
    token_logits: Tensor,
    targets: Tensor,
    mix: MixToken | None = None,
    *,
    dense_weight: float = 0.5,
) -> Tensor:
    """Cross entropy of the class token + `dense_weight` * the mean one of the N tokens, in float32 or wider.

    The class token saw the tokens of both partners, so its target is theirs, by the share of their tokens. Token
    logits belong to the image that their tokens came from (the model brings them back), so their targets stay.

    Args:
        logits: (B, C), of the class token.
        token_logits: (B, N, C), of the other tokens.
        targets: (B, 1 + N, C), of both, from `token_targets`.
        mix: the exchange of tokens that the model made.
        dense_weight: 0.5 in the paper; 1 is the default of upstream's command line.
    """
    target = targets[:, 0]
    if mix is not None:
        own = mix.own_share(token_logits.shape[1])
        target = own * target + (1 - own) * flip_groups(target, mix.group or len(target))
    token_loss = cross_entropy(token_logits.flatten(0, 1), targets[:, 1:].flatten(0, 1))
    return cross_entropy(logits, target) + dense_weight * token_loss


@dataclasses.dataclass(frozen=True)
class TokenLabeling:
    """What a training step does with the label maps of a batch."""

    num_classes: int
    grid: tuple[int, int]
    """Rows and columns of the model's tokens."""
    dense_weight: float = 0.5
    """Weight of the tokens' loss."""
    mix_token: float = 1.0
    """Both parameters of MixToken's beta distribution, 1 upstream; 0 turns it off."""
    label_smoothing: float = 0.1
    group: int | None = None
    """Images among which partners are found, by flipping; None for the whole batch."""

    def draw(self, rng: np.random.Generator) -> MixToken | None:
        """The exchange that `rng` decides."""
        return draw_mix_token(rng, self.grid, alpha=self.mix_token, group=self.group) if self.mix_token else None

    def loss(
        self,
        outputs: tuple[Tensor, Tensor],
        batch: Mapping[str, Tensor],
        mix: MixToken | None,
    ) -> Tensor:
        """Loss of the model's `outputs` in training; `batch` has "label_scores", "label_classes" and "crop"."""
        targets = token_targets(
            batch["label_scores"],
            batch["label_classes"],
            batch["crop"],
            num_classes=self.num_classes,
            grid=self.grid,
            smoothing=self.label_smoothing,
        )
        return token_label_cross_entropy(*outputs, targets, mix, dense_weight=self.dense_weight)
