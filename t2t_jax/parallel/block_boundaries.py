"""What a step does at the borders of a model's blocks: activations stay split over the devices, are forgotten and
computed again in the backward pass where memory is short, and the CPU's compiler is kept inside one block at a time.
The models know nothing of it."""

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


class Bordered(nnx.Module):
    """`block` with its output (B, N, C) split over the devices of `mesh`; with `remat` its backward pass starts from
    its input alone, all inside is computed again (arXiv 1604.06174).

    With `fence` the block stays a call in the program, forward and backward. XLA's CPU compiler would otherwise fuse
    the chain of residual sums into everything that reads it, and compute it again there: with 14 blocks that doubled
    the time of a training step. (It drops optimisation barriers before it fuses.)
    """

    def __init__(self, block: nnx.Module, mesh: AnyMesh | None, remat: bool, fence: bool) -> None:
        self.block, self.mesh, self.remat, self.fence = block, mesh, remat, fence

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        run: Callable[..., jax.Array] = nnx.remat(_call) if self.remat else _call
        if not self.fence:
            return split_batch(run(self.block, x, rngs), self.mesh)
        with set_xla_metadata(inlineable="false"):
            return split_batch(nnx.jit(run)(self.block, x, rngs), self.mesh)


class BorderedStack(nnx.Module):
    """The same of every block in a stack (see stacked.py), inside its scan."""

    def __init__(self, blocks: nnx.Module, mesh: AnyMesh | None, remat: bool) -> None:
        self.blocks, self.mesh, self.remat = blocks, mesh, remat

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        return run_blocks(self.blocks, x, rngs, each=lambda block: Bordered(block, self.mesh, self.remat, False))


def _call(block: Callable[..., jax.Array], x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
    return block(x, rngs)


def border_blocks(model: Any, mesh: AnyMesh | None = None, *, remat: bool = False, fence: bool = False) -> Any:
    """`model`, changed in place, with every block and both layers of the T2T module `Bordered`.

    The paths of its tensors change, so this is for a model that a step has just merged. A model without `blocks`
    stays as it is. The scan of a stack is a fence of its own.
    """
    if (mesh is None and not remat and not fence) or not hasattr(model, "blocks"):
        return model
    if isinstance(model.blocks, nnx.List):
        model.blocks = nnx.List([Bordered(block, mesh, remat, fence) for block in model.blocks])
    else:
        model.blocks = nnx.List([BorderedStack(model.blocks, mesh, remat)])
    tokens = getattr(model, "tokens_to_token", None)
    for name in ("attention1", "attention2"):
        if hasattr(tokens, name):
            setattr(tokens, name, Bordered(getattr(tokens, name), mesh, remat, fence))
    return model


def on_one_cpu(mesh: AnyMesh | None = None) -> bool:
    """Whether programs for `mesh` (None: what is traced for) run on a single CPU device; there blocks are fenced."""
    if mesh is None:
        return on_cpu()
    return isinstance(mesh, Mesh) and mesh.size == 1 and mesh.devices.flat[0].platform == "cpu"
