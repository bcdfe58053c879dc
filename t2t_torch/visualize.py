"""python -m t2t_torch.visualize [IMAGE...] --checkpoint PATH [--model NAME]

Visualizes a model on images (files or folders): attention rollout, attention maps of every block and head, feature maps
after the soft splits, similarity of the position embeddings; writes PNG files and a page, index.html, to --out.
The checkpoint is a .pth, .pth.tar or .safetensors file, a run's folder, or a folder written by save_pretrained; --model
alone uses random weights, whose attention is meaningless. Without IMAGE, a sample photograph from scikit-learn is used.

Twin: t2t_jax/visualize.py. Shapes: B batch, N M tokens, C channels, H heads or height, W width.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from t2t_common.io import cli
from t2t_common.visualize import Inside, stage_grids, visualize_command
from t2t_torch.create import create_model
from t2t_torch.evaluate import load_for_evaluation
from t2t_torch.models.t2t_vit_ghost import AttentionGhost


def attention_weights(attn: Any, x: Tensor) -> Tensor:
    """Return softmax(q k^T * scale) of a backbone's attention layer: input (B, N, C) -> (B, H, N, M)."""
    if isinstance(attn, AttentionGhost):
        q, k = attn.q(x), attn.k(x)
        q, k = attn._heads(q, attn.cheap_operation_q(q)), attn._heads(k, attn.cheap_operation_k(k))
    else:
        q, k, _ = attn.qkv(x).unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return ((q @ k.transpose(-2, -1)) * attn.scale).softmax(dim=-1)


@contextlib.contextmanager
def recording(
    modules: dict[str, nn.Module], note: Callable[[nn.Module, Tensor, Tensor], Tensor]
) -> Iterator[dict[str, np.ndarray]]:
    """While open, store note(module, input, output) for the first image of every call of `modules`, by name."""
    found: dict[str, np.ndarray] = {}
    handles = []

    def hook_of(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            found[name] = note(module, args[0], output)[0].numpy()

        return hook

    try:
        handles += [module.register_forward_hook(hook_of(name)) for name, module in modules.items()]
        yield found
    finally:
        for handle in handles:
            handle.remove()


def make_feature_extractor(model: Any) -> Callable[[np.ndarray], Inside]:
    """Return a function that computes the activations of `model` (in evaluation mode, on the CPU) for a preprocessed
    image (H, W, C)."""
    stages = stage_grids(model)
    layers = {name: getattr(model.tokens_to_token, name) for name in stages}
    attns = {f"blocks.{i}": block.attn for i, block in enumerate(model.blocks) if hasattr(block, "attn")}

    @torch.no_grad()
    def look(image_HxWxC: np.ndarray) -> Inside:
        images = torch.from_numpy(image_HxWxC)[None].permute(0, 3, 1, 2).contiguous()
        with (
            recording(layers, lambda layer, x, output: output if output.ndim == 3 else output.movedim(1, -1)) as tokens,
            recording(attns, lambda attn, x, output: attention_weights(attn, x)) as attention,
        ):
            logits = model(images)
        return Inside(
            attention=attention,
            stages={name: tokens[name].reshape(*grid, -1) for name, grid in stages.items()},
            positions=model.pos_embed[0].numpy(),
            grid=model.grid_size,
            num_prefix_tokens=model.num_prefix_tokens,
            logits=logits[0].numpy(),
        )

    return look


def main(args: Sequence[str]) -> int:
    """Run the command and return its exit code."""

    def create(**arguments: Any) -> nn.Module:
        torch.manual_seed(0)
        return create_model(**arguments).eval()

    return visualize_command(
        args, "t2t_torch", __doc__ or "", load=load_for_evaluation, create=create, make_extractor=make_feature_extractor
    )


if __name__ == "__main__":
    sys.exit(cli.run(main))
