"""python -m t2t_jax.visualize [IMAGE...] --checkpoint PATH [--model NAME]

Visualizes a model on images (files or folders): attention rollout, attention maps of every block and head, feature maps
after the soft splits, similarity of the position embeddings; writes PNG files and a page, index.html, to --out.
The checkpoint is a run's folder, a checkpoint folder, a folder written by save_pretrained, or a .pth, .pth.tar or
.safetensors file; --model alone uses random weights, whose attention is meaningless. Without IMAGE, a sample photograph
from scikit-learn is used.

Twin: t2t_torch/visualize.py. Shapes: B batch, N M tokens, P prefix tokens, C channels, H heads, D channels per head.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from t2t_common.io import cli
from t2t_common.visualize import Inside, stage_grids, visualize_command
from t2t_jax.create import create_model
from t2t_jax.evaluate import load_for_evaluation
from t2t_jax.models.scan_blocks import unstack_blocks
from t2t_jax.models.t2t_vit_ghost import AttentionGhost
from t2t_jax.ops.float32_einsum import float32_einsum


class RecordedModule(nnx.Module):
    """Wrapper that calls `module` without `rngs` (evaluation) and sows `note(module, input, output)` as "seen"."""

    def __init__(self, module: Any, note: Callable[[Any, jax.Array, jax.Array], jax.Array]) -> None:
        self.module, self.note = module, note

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        output = self.module(x)
        self.sow(nnx.Intermediate, "seen", self.note(self.module, x, output))
        return output


def attention_weights(attn: Any, x: jax.Array) -> jax.Array:
    """Return softmax(q k^T * scale) of a backbone's attention layer: input (B, N, C) -> (B, H, N, M)."""
    if isinstance(attn, AttentionGhost):
        q, k = attn.q(x), attn.k(x)
        q, k = attn._heads(q, attn.cheap_operation_q(q)), attn._heads(k, attn.cheap_operation_k(k))
    else:
        q, k, _ = attn.qkv(x).reshape(*x.shape[:2], 3, attn.num_heads, -1).transpose(2, 0, 3, 1, 4)
    return jax.nn.softmax(float32_einsum("bhnd,bhmd->bhnm", q * attn.scale, k), axis=-1)


def make_feature_extractor(model: Any) -> Callable[[np.ndarray], Inside]:
    """Return a function that computes the activations of `model` (in evaluation mode) for a preprocessed image
    (H, W, C); it is compiled once."""
    stages = stage_grids(model)
    watched = unstack_blocks(nnx.clone(model))
    for name in stages:
        layer = getattr(watched.tokens_to_token, name)
        setattr(watched.tokens_to_token, name, RecordedModule(layer, lambda layer, x, output: output))
    blocks = {f"blocks.{i}": block for i, block in enumerate(watched.blocks) if hasattr(block, "attn")}
    for block in blocks.values():
        block.attn = RecordedModule(block.attn, lambda attn, x, output: attention_weights(attn, x))
    graphdef, state = nnx.split(watched)

    @jax.jit
    def run(state: nnx.State, images_BxHxWxC: jax.Array) -> tuple[jax.Array, nnx.State]:
        return nnx.capture(nnx.merge(graphdef, state), nnx.Intermediate)(images_BxHxWxC)

    def look(image_HxWxC: np.ndarray) -> Inside:
        with jax.default_matmul_precision("highest"):
            logits, seen = jax.device_get(run(state, image_HxWxC[None]))
        found = {".".join(map(str, path)): sown.get_value()[0][0] for path, sown in nnx.to_flat_state(seen)}
        return Inside(
            attention={name: found[f"{name}.attn.seen"] for name in blocks},
            stages={name: found[f"tokens_to_token.{name}.seen"].reshape(*grid, -1) for name, grid in stages.items()},
            positions=np.asarray(model.pos_embed[...][0]),
            grid=model.grid_size,
            num_prefix_tokens=model.num_prefix_tokens,
            logits=logits[0],
        )

    return look


def main(args: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    return visualize_command(
        args,
        "t2t_jax",
        __doc__ or "",
        load=load_for_evaluation,
        create=create_model,
        make_extractor=make_feature_extractor,
    )


if __name__ == "__main__":
    sys.exit(cli.run(main))
