"""Token labeling (arXiv 2104.10858): soft targets for every token, MixToken boxes, and the loss of both heads.

Source: zihangJiang/TokenLabeling: tlt/data/mixup.py (targets), tlt/loss/cross_entropy.py. Random sampling and
computation are separate, as in mixup.py. Twin: t2t_torch/training/token_labeling.py.
Shapes: B batch, N tokens on a grid, C channels or classes, K labels of a cell, H W cells of a map.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from t2t_config.recipes.batch_augmentation import TokenLabelingSettings
from t2t_jax.models.mix_token import MixToken, flip_groups
from t2t_jax.training.loss import cross_entropy


def draw_mix_token(key: jax.Array, grid: tuple[int, int], *, alpha: float = 1.0, group: int | None = None) -> MixToken:
    """Sample one box for a batch, as upstream; its share of the grid before clipping is 1 - Beta(alpha, alpha)."""
    lam_key, row_key, column_key = jax.random.split(key, 3)
    centre = jax.random.randint(row_key, (), 0, grid[0]), jax.random.randint(column_key, (), 0, grid[1])
    return rand_bbox(grid, jax.random.beta(lam_key, alpha, alpha), centre, group)


def rand_bbox(
    grid: tuple[int, int], lam: jax.Array, centre: tuple[jax.Array, jax.Array], group: int | None = None
) -> MixToken:
    """Return a box with share 1 - `lam` of the grid around `centre` (row, column), clipped at the grid's borders.

    As upstream, odd side lengths shrink by one, because both halves are rounded down.
    """

    def edges(size: int, middle: jax.Array) -> tuple[jax.Array, jax.Array]:
        half = (size * jnp.sqrt(1 - lam)).astype(jnp.int32) // 2
        return jnp.clip(middle - half, 0, size), jnp.clip(middle + half, 0, size)

    return MixToken(*edges(grid[0], centre[0]), *edges(grid[1], centre[1]), group)


# ---- targets ----


def token_targets(
    scores_BxKxHxW: jax.Array,
    classes_BxKxHxW: jax.Array,
    crops_Bx4: jax.Array,
    *,
    num_classes: int,
    grid: tuple[int, int],
    smoothing: float = 0.0,
) -> jax.Array:
    """Compute targets (B, 1 + N, num_classes) from label maps: for the class token (whole crop), then for every token.

    The score map is cropped like its image, by RoIAlign (arXiv 1703.06870), with score 0 for classes that a cell does
    not list; a softmax over the classes gives the targets.

    Two upstream peculiarities: smoothing adds s / n to targets scaled by 1 - s + s / n, so they sum to 1 + s / n
    (kept); and upstream passes (top, left) to RoIAlign, which expects (left, top), so crops off the diagonal are taken
    from another place of the map (corrected here).

    Args:
        scores_BxKxHxW: Scores (before softmax) of the top-K classes of each cell.
        classes_BxKxHxW: Indices of these classes.
        crops_Bx4: Top, bottom, left, right of the crops, as fractions of the image's height and width.
        num_classes: Number of classes of the targets.
        grid: Numbers of rows and columns of tokens.
        smoothing: Share of the target distributed over all classes.
    """
    height, width = scores_BxKxHxW.shape[2:]

    def dense(scores_KxHxW: jax.Array, classes_KxHxW: jax.Array) -> jax.Array:
        rows_HxW, columns_HxW = jnp.mgrid[:height, :width]
        map_HxWxC = jnp.zeros((height, width, num_classes), scores_KxHxW.dtype)
        return map_HxWxC.at[rows_HxW[None], columns_HxW[None], classes_KxHxW].set(scores_KxHxW)

    # vmap over images, so that no communication is needed between devices that split a batch.
    map_BxHxWxC = jax.vmap(dense)(scores_BxKxHxW, classes_BxKxHxW)
    crops_Bx4 = crops_Bx4.astype(scores_BxKxHxW.dtype)
    scores_BxMxC = jnp.concatenate([roi_align(map_BxHxWxC, crops_Bx4, bins) for bins in ((1, 1), grid)], axis=1)
    rest = smoothing / num_classes
    return jax.nn.softmax(scores_BxMxC) * (1 - smoothing + rest) + rest


def roi_align(map_BxHxWxC: jax.Array, crops_Bx4: jax.Array, bins: tuple[int, int]) -> jax.Array:
    """torchvision's `roi_align` (aligned=False, adaptive sampling) with upstream's shift by half a cell: (B, N, C).

    Bilinear samples at regular intervals are averaged within each of the N = rows * columns bins. The weights are
    separable into rows and columns, so this is two matrix products.
    """
    height, width = map_BxHxWxC.shape[1:3]
    rows_BxPxH = _bin_weights(crops_Bx4[:, :2] * height - 0.5, height, bins[0])
    columns_BxQxW = _bin_weights(crops_Bx4[:, 2:] * width - 0.5, width, bins[1])
    exact = jax.lax.Precision.HIGHEST
    rows_BxPxWxC = jnp.einsum("bph,bhwc->bpwc", rows_BxPxH, map_BxHxWxC, precision=exact)
    bins_BxPxQxC = jnp.einsum("bqw,bpwc->bpqc", columns_BxQxW, rows_BxPxWxC, precision=exact)
    return bins_BxPxQxC.reshape(len(map_BxHxWxC), -1, map_BxHxWxC.shape[-1])


def _bin_weights(edges_Bx2: jax.Array, cells: int, bins: int) -> jax.Array:
    """Return the weight of each of `cells` in each bin between the two edges: (B, bins, cells)."""
    low_B, high_B = edges_Bx2.T
    side_B = jnp.maximum(high_B - low_B, 1.0) / bins
    most = -(-cells // bins)
    low_Bx1x1, side_Bx1x1 = low_B[:, None, None], side_B[:, None, None]
    samples_Bx1x1 = jnp.minimum(jnp.ceil(side_Bx1x1), most)
    bin_1xPx1, sample_1x1xS = jnp.arange(bins)[None, :, None], jnp.arange(most)[None, None]
    places_BxPxS = low_Bx1x1 + side_Bx1x1 * (bin_1xPx1 + (sample_1x1xS + 0.5) / samples_Bx1x1)
    counts_BxPxS = (sample_1x1xS < samples_Bx1x1) & (places_BxPxS >= -1) & (places_BxPxS <= cells)
    cell_1x1x1xH = jnp.arange(cells)[None, None, None]
    distance_BxPxSxH = jnp.abs(jnp.clip(places_BxPxS, 0, cells - 1)[..., None] - cell_1x1x1xH)
    weights_BxPxSxH = jnp.where(counts_BxPxS[..., None], jnp.maximum(1 - distance_BxPxSxH, 0), 0)
    return weights_BxPxSxH.sum(axis=2) / samples_Bx1x1


# ---- loss ----


def token_label_cross_entropy(
    logits_BxC: jax.Array,
    token_logits_BxNxC: jax.Array,
    targets_BxMxC: jax.Array,
    mix: MixToken | None = None,
    *,
    dense_weight: float = 0.5,
) -> jax.Array:
    """Return the class token's cross entropy + `dense_weight` * the mean over the N tokens, in float32 or wider.

    The class token attends to tokens of both mixed images, so its target is mixed by their shares of the tokens. The
    model moves token logits back to the image that the tokens came from, so token targets are unchanged.

    Args:
        logits_BxC: Logits of the class token.
        token_logits_BxNxC: Logits of the other tokens.
        targets_BxMxC: Targets of both, M = 1 + N, from `token_targets`.
        mix: MixToken exchange applied by the model.
        dense_weight: Weight of the token loss; 0.5 in the paper, 1 by default in upstream's command line.
    """
    target_BxC = targets_BxMxC[:, 0]
    if mix is not None:
        own = mix.own_share(token_logits_BxNxC.shape[1])
        target_BxC = own * target_BxC + (1 - own) * flip_groups(target_BxC, mix.group or len(target_BxC))
    token_loss = cross_entropy(token_logits_BxNxC, targets_BxMxC[:, 1:])
    return cross_entropy(logits_BxC, target_BxC) + dense_weight * token_loss


class TokenLabeling(TokenLabelingSettings):
    """Token labeling in a training step: samples MixToken boxes and computes the loss from a batch's label maps."""

    def draw(self, key: jax.Array) -> MixToken | None:
        """Sample the MixToken exchange; None if MixToken is off."""
        return draw_mix_token(key, self.grid, alpha=self.mix_token, group=self.group) if self.mix_token else None

    def loss(
        self,
        outputs: tuple[jax.Array, jax.Array],
        batch: Mapping[str, jax.Array],
        mix: MixToken | None,
    ) -> jax.Array:
        """Return the loss of the training `outputs`; `batch` has "label_scores", "label_classes" and "crop"."""
        targets_BxMxC = token_targets(
            batch["label_scores"],
            batch["label_classes"],
            batch["crop"],
            num_classes=self.num_classes,
            grid=self.grid,
            smoothing=self.label_smoothing,
        )
        return token_label_cross_entropy(*outputs, targets_BxMxC, mix, dense_weight=self.dense_weight)
