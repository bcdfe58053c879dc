"""Token labeling (arXiv 2104.10858): soft targets for every token, MixToken boxes, and the loss of both heads.

Source: zihangJiang/TokenLabeling: tlt/data/mixup.py (targets), tlt/loss/cross_entropy.py.
Twin: t2t_jax/training/token_labeling.py.
Shapes: B batch, N tokens on a grid, C channels or classes, K labels of a cell, H W cells of a map.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from t2t_config.recipes.batch_augmentation import TokenLabelingSettings
from t2t_torch.models.mix_token import MixToken, flip_groups
from t2t_torch.training.loss import cross_entropy


def draw_mix_token(
    rng: np.random.Generator, grid: tuple[int, int], *, alpha: float = 1.0, group: int | None = None
) -> MixToken:
    """Sample one box for a batch, as upstream; its share of the grid before clipping is 1 - Beta(alpha, alpha)."""
    centre = int(rng.integers(grid[0])), int(rng.integers(grid[1]))
    return rand_bbox(grid, rng.beta(alpha, alpha), centre, group)


def rand_bbox(grid: tuple[int, int], lam: float, centre: tuple[int, int], group: int | None = None) -> MixToken:
    """Return a box with share 1 - `lam` of the grid around `centre` (row, column), clipped at the grid's borders.

    As upstream, odd side lengths shrink by one, because both halves are rounded down.
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
    """Compute targets (B, 1 + N, num_classes) from label maps: for the class token (whole crop), then for every token.

    The score map is cropped like its image, by RoIAlign (arXiv 1703.06870), with score 0 for classes that a cell does
    not list; a softmax over the classes gives the targets.

    Two upstream peculiarities: smoothing adds s / n to targets scaled by 1 - s + s / n, so they sum to 1 + s / n
    (kept); and upstream passes (top, left) to RoIAlign, which expects (left, top), so crops off the diagonal are taken
    from another place of the map (corrected here).

    Args:
        scores: (B, K, H, W), scores (before softmax) of the top-K classes of each cell.
        classes: (B, K, H, W), indices of these classes.
        crops: (B, 4), top, bottom, left, right of the crops, as fractions of the image's height and width.
        num_classes: Number of classes of the targets.
        grid: Numbers of rows and columns of tokens.
        smoothing: Share of the target distributed over all classes.
    """
    B, _, H, W = scores.shape
    dense = scores.new_zeros((B, num_classes, H, W)).scatter(1, classes.long(), scores).permute(0, 2, 3, 1)
    crops = crops.to(scores.dtype)
    found = torch.cat([roi_align(dense, crops, bins) for bins in ((1, 1), grid)], dim=1)
    rest = smoothing / num_classes
    return found.softmax(dim=-1) * (1 - smoothing + rest) + rest


def roi_align(dense: Tensor, crops: Tensor, bins: tuple[int, int]) -> Tensor:
    """torchvision's `roi_align` (aligned=False, adaptive sampling) with upstream's shift by half a cell.

    Maps (B, H, W, C) -> (B, N, C): bilinear samples at regular intervals are averaged within each of the
    N = rows * columns bins. The weights are separable into rows and columns, so this is two matrix products.
    """
    H, W = dense.shape[1:3]
    rows = _bin_weights(crops[:, :2] * H - 0.5, H, bins[0])
    columns = _bin_weights(crops[:, 2:] * W - 0.5, W, bins[1])
    return torch.einsum("bph,bqw,bhwc->bpqc", rows, columns, dense).flatten(1, 2)


def _bin_weights(edges: Tensor, cells: int, bins: int) -> Tensor:
    """Return the weight of each of `cells` in each bin between the two edges (B, 2): (B, bins, cells)."""
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
    """Return the class token's cross entropy + `dense_weight` * the mean over the N tokens, in float32 or wider.

    The class token attends to tokens of both mixed images, so its target is mixed by their shares of the tokens. The
    model moves token logits back to the image that the tokens came from, so token targets are unchanged.

    Args:
        logits: (B, C), logits of the class token.
        token_logits: (B, N, C), logits of the other tokens.
        targets: (B, 1 + N, C), targets of both, from `token_targets`.
        mix: MixToken exchange applied by the model.
        dense_weight: Weight of the token loss; 0.5 in the paper, 1 by default in upstream's command line.
    """
    target = targets[:, 0]
    if mix is not None:
        own = mix.own_share(token_logits.shape[1])
        target = own * target + (1 - own) * flip_groups(target, mix.group or len(target))
    token_loss = cross_entropy(token_logits.flatten(0, 1), targets[:, 1:].flatten(0, 1))
    return cross_entropy(logits, target) + dense_weight * token_loss


class TokenLabeling(TokenLabelingSettings):
    """Token labeling in a training step: samples MixToken boxes and computes the loss from a batch's label maps."""

    def draw(self, rng: np.random.Generator) -> MixToken | None:
        """Sample the MixToken exchange; None if MixToken is off."""
        return draw_mix_token(rng, self.grid, alpha=self.mix_token, group=self.group) if self.mix_token else None

    def loss(
        self,
        outputs: tuple[Tensor, Tensor],
        batch: Mapping[str, Tensor],
        mix: MixToken | None,
    ) -> Tensor:
        """Return the loss of the training `outputs`; `batch` has "label_scores", "label_classes" and "crop"."""
        targets = token_targets(
            batch["label_scores"],
            batch["label_classes"],
            batch["crop"],
            num_classes=self.num_classes,
            grid=self.grid,
            smoothing=self.label_smoothing,
        )
        return token_label_cross_entropy(*outputs, targets, mix, dense_weight=self.dense_weight)
