"""Handling of activations at the boundaries of a model's blocks, without changes to the models: activations stay split
over the devices, can be recomputed in the backward pass to save memory, and XLA's CPU compiler is kept from fusing
across blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax.experimental.xla_metadata import set_xla_metadata
from jax.sharding import Mesh

from t2t_jax.models.scan_blocks import run_blocks
from t2t_jax.ops.platform import on_cpu
from t2t_jax.parallel.mesh import AnyMesh, split_batch


class WrappedBlock(nnx.Module):
    """Wrapper of `block` that splits its output (B, N, C) over the devices of `mesh`.

    With `remat`, only the block's input is saved for the backward pass; all inside is recomputed (arXiv 1604.06174).
    With `fence`, the block remains a call in the program, forward and backward. Otherwise XLA's CPU compiler fuses the
    chain of residual sums into every operation that reads it and recomputes it there, which doubled the time of a
    training step with 14 blocks. (It removes optimization barriers before fusion.)
    """

    def __init__(self, block: nnx.Module, mesh: AnyMesh | None, remat: bool, fence: bool) -> None:
        self.block, self.mesh, self.remat, self.fence = block, mesh, remat, fence

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        run: Callable[..., jax.Array] = nnx.remat(_call) if self.remat else _call
        if not self.fence:
            return split_batch(run(self.block, x, rngs), self.mesh)
        with set_xla_metadata(inlineable="false"):
            return split_batch(nnx.jit(run)(self.block, x, rngs), self.mesh)


class WrappedStack(nnx.Module):
    """`WrappedBlock` for every block of a stack (see scan_blocks.py), inside its scan."""

    def __init__(self, blocks: nnx.Module, mesh: AnyMesh | None, remat: bool) -> None:
        self.blocks, self.mesh, self.remat = blocks, mesh, remat

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        return run_blocks(self.blocks, x, rngs, each=lambda block: WrappedBlock(block, self.mesh, self.remat, False))


def _call(block: Callable[..., jax.Array], x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
    return block(x, rngs)


def wrap_blocks(model: Any, mesh: AnyMesh | None = None, *, remat: bool = False, fence: bool = False) -> Any:
    """Wrap every block and both layers of the T2T module of `model` in `WrappedBlock`, in place.

    This changes the paths of its tensors, so use it only on a model that a step has just merged. A model without
    `blocks` is unchanged. Stacked blocks need no fence, because their scan acts as one.
    """
    if (mesh is None and not remat and not fence) or not hasattr(model, "blocks"):
        return model
    if isinstance(model.blocks, nnx.List):
        model.blocks = nnx.List([WrappedBlock(block, mesh, remat, fence) for block in model.blocks])
    else:
        model.blocks = nnx.List([WrappedStack(model.blocks, mesh, remat)])
    tokens = getattr(model, "tokens_to_token", None)
    for name in ("attention1", "attention2"):
        if hasattr(tokens, name):
            setattr(tokens, name, WrappedBlock(getattr(tokens, name), mesh, remat, fence))
    return model


def on_one_cpu(mesh: AnyMesh | None = None) -> bool:
    """Return whether `mesh` (None: the traced platform) is a single CPU device, on which blocks are fenced."""
    if mesh is None:
        return on_cpu()
    return isinstance(mesh, Mesh) and mesh.size == 1 and mesh.devices.flat[0].platform == "cpu"
