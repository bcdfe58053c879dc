"""Adapt weights to a model with another image size, number of channels or number of classes.

All arrays are numpy float64, with the official names and PyTorch's layouts; both frameworks round once to the dtypes of
their model. Shapes: P prefix tokens, token grids h x w and H x W, C image channels, K pixels of a window, O outputs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import numpy as np

from t2t_config.shapes import SOFT_SPLITS

Read = Callable[[str], np.ndarray]
"""Tensor name -> tensor."""
Shapes = Mapping[str, tuple[int, ...]]

CLASSIFIERS = ("head", "head_dist", "aux_head")

CONVOLUTIONS = ("patch_embed.proj.weight", "tokens_to_token.soft_split0.weight")
"""Convolutional first layers: of ViT, and of the T2T module with tokens_type 'convolution'."""

SOFT_SPLIT = "tokens_to_token.attention1."
"""Prefix of the layers after the first soft split: `norm1` and a linear layer, on window features (C, kh, kw)."""


@dataclasses.dataclass(frozen=True)
class Adapted:
    """Changes that adapt weights to a model.

    Attributes:
        changed: Tensors that differ from those of the file, in float64.
        resized: Tensor name -> description of its change.
        left_out: Tensors of the file that the model does not have.
        missing: Tensors of the model that the file does not have.
    """

    changed: Mapping[str, np.ndarray]
    resized: Mapping[str, str]
    left_out: tuple[str, ...]
    missing: tuple[str, ...]


def adapt(
    read: Read,
    shapes: Shapes,
    own: Shapes,
    *,
    grid: tuple[int, int],
    num_prefix_tokens: int,
    source_grid: tuple[int, int] | None = None,
    fresh_classifiers: bool = True,
    resize: Callable[..., np.ndarray] | None = None,
) -> Adapted:
    """Adapt weights with `shapes` to a model with shapes `own`. The caller checks all other tensors.

    The position embedding is resized to the model's grid (`resize_pos_embed`), and the first layer is adapted to the
    model's channels (`adapt_in_chans`). Classifiers that the model does not have are left out.

    Args:
        read: Reads a tensor by name, as float64.
        shapes: Shapes of the weights.
        own: Shapes of the model.
        grid: Rows and columns of the model's token grid.
        num_prefix_tokens: Number of tokens of the model before the image tokens.
        source_grid: Grid of the position embedding; needed only if it is not square.
        fresh_classifiers: Whether classifiers for another number of classes are also left out.
        resize: Replacement for `resize_pos_embed`, with the same arguments.

    Raises:
        ValueError: The grid of the position embedding is not square, or does not match `source_grid`.
    """
    left_out = _unfit_classifiers(shapes, own, fresh_classifiers)
    kept = {name: shape for name, shape in shapes.items() if name not in left_out}
    missing = _absent_classifiers(kept, own) if fresh_classifiers else ()
    changed, resized = adapt_in_chans(read, kept, own)
    if source := _source_grid(kept, own, grid, num_prefix_tokens, source_grid):
        resized_table = (resize or resize_pos_embed)(
            read("pos_embed"), source, grid, num_prefix_tokens=num_prefix_tokens
        )
        changed["pos_embed"] = resized_table
        resized = {"pos_embed": f"{source[0]}x{source[1]} -> {grid[0]}x{grid[1]} (bicubic)", **resized}
    return Adapted(changed, resized, left_out, missing)


# ---- classifiers ----


def _layer(shapes: Shapes, name: str) -> Shapes:
    return {key: value for key, value in shapes.items() if key.startswith(name + ".")}


def _unfit_classifiers(shapes: Shapes, own: Shapes, fresh: bool) -> tuple[str, ...]:
    """Return the classifier tensors of the file that the model lacks or (`fresh`) has for another number of classes.

    ViT's `pre_logits` is then left out too: the in21k models lose that layer when the number of classes changes.
    """
    names: list[str] = []
    for head in CLASSIFIERS:
        theirs, ours = _layer(shapes, head), _layer(own, head)
        classes = [{shape[:1] for shape in layer.values()} for layer in (theirs, ours)]
        if not ours or (fresh and theirs.keys() == ours.keys() and classes[0] != classes[1]):
            names += theirs
    if names and not _layer(own, "pre_logits"):
        names += _layer(shapes, "pre_logits")
    return tuple(names)


def _absent_classifiers(shapes: Shapes, own: Shapes) -> tuple[str, ...]:
    """Return the tensors of the model's classifiers that are absent from `shapes`."""
    return tuple(key for head in CLASSIFIERS if not _layer(shapes, head) for key in _layer(own, head))


# ---- positions ----


def _source_grid(
    shapes: Shapes, own: Shapes, grid: tuple[int, int], prefix: int, given: tuple[int, int] | None
) -> tuple[int, int] | None:
    """Return the grid from which the position embedding is resized; None if it is not resized."""
    table, target = shapes.get("pos_embed"), own.get("pos_embed")
    if table is None or target is None or len(table) != 3 or table[2] != target[2]:
        return None  # nothing to resize; the caller's check reports any mismatch
    if given is None:
        if table == target:
            return None
        given = _square_grid(table[1] - prefix)
    return None if tuple(given) == tuple(grid) else given


def _square_grid(tokens: int) -> tuple[int, int]:
    side = math.isqrt(max(tokens, 0))
    if side == 0 or side * side != tokens:
        raise ValueError(f"its pos_embed has {tokens} positions, no square: give source_grid=(height, width)")
    return side, side


def resize_pos_embed(
    table: np.ndarray, source_grid: tuple[int, int], grid: tuple[int, int], *, num_prefix_tokens: int = 1
) -> np.ndarray:
    """Resize a position embedding (1, P + h * w, C) to another grid: (1, P + H * W, C), in float64.

    Equivalent to PyTorch's `interpolate(mode='bicubic')`, as in the authors' `resize_pos_embed`: cubic convolution with
    a = -0.75, half-pixel centers, edge padding, no antialiasing. (`jax.image.resize` has a = -0.5 and antialiases.)
    The first P = `num_prefix_tokens` rows (class and distillation token) are unchanged.

    Raises:
        ValueError: The table does not have P + h * w rows.
    """
    height, width = source_grid
    if table.shape[1] != num_prefix_tokens + height * width:
        raise ValueError(
            f"pos_embed {table.shape} does not hold {num_prefix_tokens} + {height}x{width} tokens: check source_grid"
        )
    table = table.astype(np.float64)
    prefix, image = table[:, :num_prefix_tokens], table[:, num_prefix_tokens:].reshape(1, height, width, -1)
    rows, columns = cubic_weights(height, grid[0]), cubic_weights(width, grid[1])
    image = np.einsum("Hh,Ww,bhwc->bHWc", rows, columns, image, optimize=True)
    return np.concatenate((prefix, image.reshape(1, grid[0] * grid[1], -1)), axis=1)


def cubic_weights(size: int, new_size: int, a: float = -0.75) -> np.ndarray:
    """Return the cubic convolution weights (new_size, size) of old positions in new ones (Keys 1981, equation 4)."""
    centre = (np.arange(new_size) + 0.5) * (size / new_size) - 0.5
    weights = np.zeros((new_size, size))
    for offset in (-1, 0, 1, 2):
        position = np.floor(centre).astype(int) + offset
        d = np.abs(centre - position)
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        np.add.at(weights, (np.arange(new_size), position.clip(0, size - 1)), np.where(d <= 1, near, far))
    return weights


# ---- channels ----


def adapt_in_chans(read: Read, shapes: Shapes, own: Shapes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Adapt the first layer to the model's channels; return (changed tensors in float64, name -> description).

    As in timm's `adapt_input_conv`: for one channel, the weights are summed over the old channels, so a gray image
    gives the same output as its copy with three equal channels; for more channels, the old ones are repeated in turn
    and scaled by old / new, so an image whose channels are all repeated equally (3 -> 6) gives the same output. (For
    other numbers, e.g. 3 -> 4, this is timm's approximation.)

    After a soft split both remain exact although a LayerNorm precedes the linear layer: repeated features have the
    same mean and variance as single ones. For one channel the norm's scale and shift, which differ between the old
    channels, are folded into the linear layer: with M its weights times the scale, summed over channels, and v its
    weights times the shift, summed over features, the new weights are M + (v - M 1) 1^T / K, and the norm's scale and
    shift are all ones. The normalized features n sum to zero, so the second term adds nothing to M n, and the shift
    contributes v. A TokenTransformer's scale (C * K)^-0.5 depends on C, so its q is rescaled to compensate.
    """
    changed, done = {}, {}
    for name in CONVOLUTIONS:  # (O, C, K, K)
        if name in shapes and name in own and len(shapes[name]) == len(own[name]) == 4:
            old, new = shapes[name][1], own[name][1]
            if old != new:
                changed[name], done[name] = _adapt(read(name), new), _how(old, new)
    soft_split, how = _adapt_soft_split(read, shapes, own)
    return changed | soft_split, done | how


def _adapt(weight: np.ndarray, in_chans: int) -> np.ndarray:
    """Adapt (O, C, ...) to `in_chans` channels: summed for one channel, else repeated and scaled."""
    if in_chans == 1:
        return weight.sum(axis=1, keepdims=True)
    return _repeat(weight, in_chans) * (weight.shape[1] / in_chans)


def _repeat(x: np.ndarray, in_chans: int) -> np.ndarray:
    """Repeat the channels in turn: (_, C, ...) -> (_, in_chans, ...)."""
    return x[:, np.arange(in_chans) % x.shape[1]]


def _how(old: int, new: int) -> str:
    return f"{old} -> {new} channels ({'summed' if new == 1 else f'repeated, times {old}/{new}'})"


def _adapt_soft_split(read: Read, shapes: Shapes, own: Shapes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    linear = "attn.qkv" if f"{SOFT_SPLIT}attn.qkv.weight" in own else "kqv"
    names = [f"{SOFT_SPLIT}{name}" for name in ("norm1.weight", "norm1.bias", f"{linear}.weight")]
    window = SOFT_SPLITS[0][0] ** 2
    if any(name not in shapes or name not in own for name in names):
        return {}, {}  # no soft split
    old, new = shapes[names[0]][0] // window, own[names[0]][0] // window
    expected = [(old * window,), (old * window,), (own[names[2]][0], old * window)]
    if old == new or [shapes[name] for name in names] != expected:
        return {}, {}  # nothing to adapt, or a mismatch that the caller's check reports
    scale, shift, weight = (read(name).reshape(-1, old, window) for name in names)  # (1 or O, C, K)
    if linear == "attn.qkv":
        q, k, v = np.split(weight, 3)
        weight = np.concatenate((q * math.sqrt(new / old), k, v))
    if new == 1:
        folded, offset = (weight * scale).sum(axis=1), (weight * shift).sum(axis=(1, 2))
        folded += (offset - folded.sum(axis=1))[:, None] / window
        fitted = np.ones(window), np.ones(window), folded
    else:
        fitted = _repeat(scale, new), _repeat(shift, new), _adapt(weight, new)
    norm = f"{old} -> {new} channels ({'folded into the next layer' if new == 1 else 'repeated'})"
    changed = {name: value.reshape(own[name]) for name, value in zip(names, fitted, strict=True)}
    return changed, {names[0]: norm, names[1]: norm, names[2]: _how(old, new)}
