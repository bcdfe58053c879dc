"""Device mesh with the axes `data` and `fsdp`, and the shardings of a training run's arrays on it.

A batch is split over both axes. Parameters, optimizer state and averaged weights are split over `fsdp` by path rules
and gathered where a step uses them, as in ZeRO stage 3 (arXiv 1910.02054); gradients are scattered. Devices therefore
exchange weights and gradients only, never images, tokens or logits beyond a device's own part.
The axes have type Auto: the compiler propagates the sharding constraints that a step sets with this module.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from t2t_jax.models.scan_blocks import is_stacked, tensor_shape

AXES = ("data", "fsdp")
BATCH = P(AXES)
"""Sharding of the first axis over all devices, with `fsdp` varying fastest."""

RULES: tuple[tuple[str, bool], ...] = (
    ("*token", False),
    ("pos_embed", False),
    ("*.bias", False),
    ("*.scale", False),
    ("*", True),
)
"""Shell-style pattern of a parameter's dotted name -> whether `fsdp` splits it; the first match applies. Small
parameters are replicated: communicating each of them would cost more than the memory saved."""

Tree = TypeVar("Tree")
AnyMesh = Mesh | AbstractMesh
"""Mesh of devices, or an abstract one with their number only, which is sufficient to lower a program."""


def mesh_shape(text: str | None, num_devices: int) -> tuple[int, int]:
    """Parse `text`, e.g. "data=4,fsdp=2", into the sizes of the axes (data, fsdp).

    An axis that is not given has size 1. None uses all devices for data.

    Raises:
        ValueError: If `text` cannot be parsed or needs more than `num_devices` devices.
    """
    if text is None:
        return num_devices, 1
    sizes = dict.fromkeys(AXES, 0)
    for part in text.split(","):
        found = re.fullmatch(r"(data|fsdp)=([1-9]\d*)", part.strip())
        if not found or sizes[found[1]]:
            raise ValueError(f"mesh {text!r} is not understood: write it as data=4,fsdp=2")
        sizes[found[1]] = int(found[2])
    shape = max(1, sizes["data"]), max(1, sizes["fsdp"])
    if math.prod(shape) > num_devices:
        raise ValueError(f"mesh {text!r} needs {math.prod(shape)} devices, there are {num_devices}: make it smaller")
    return shape


def make_mesh(text: str | None = None) -> Mesh:
    """Create the mesh of this run over the devices of all processes; see `mesh_shape` for `text`.

    A run with a single process may leave devices unused.

    Raises:
        ValueError: If `text` cannot be parsed or does not match the number of devices.
    """
    devices = jax.devices()
    shape = mesh_shape(text, len(devices))
    if jax.process_count() > 1 and math.prod(shape) != len(devices):
        raise ValueError(f"mesh {text!r} leaves some of the {len(devices)} devices unused: use all of them")
    return jax.make_mesh(shape, AXES, (AxisType.Auto,) * len(AXES), devices=devices[: math.prod(shape)])


def check_batch(
    batch_size: int, mesh: AnyMesh, *, parts: int = 1, group: int | None = None, group_in_parts: bool = False
) -> None:
    """Check that a batch divides evenly among devices and micro-batches, without splitting mixup groups.

    Args:
        batch_size: Images per step.
        mesh: Mesh of the run.
        parts: Micro-batches per step.
        group: Size of the groups in which mixup pairs images; None without mixing.
        group_in_parts: Whether the groups are within micro-batches.

    Raises:
        ValueError: If it does not; the message suggests a valid setting.
    """
    if batch_size % (mesh.size * parts):
        micro = f" in {parts} micro-batches" if parts > 1 else ""
        raise ValueError(
            f"batch_size {batch_size} does not divide among {mesh.size} devices{micro}: choose a multiple of "
            f"{mesh.size * parts}, or another mesh"
        )
    own = batch_size // mesh.size // (parts if group_in_parts else 1)
    if group is not None and mesh.size > 1 and own % group:
        smaller = math.gcd(own, group)
        remedy = f"--mixup-group {smaller}, or another " if smaller % 2 == 0 else "another "
        raise ValueError(
            f"mixup_group {group} does not divide the {own} images of each device, so that images would be exchanged "
            f"between devices: choose {remedy}batch size or mesh"
        )


def param_spec(name: str, shape: Sequence[int], fsdp: int) -> P:
    """Return the partitioning of the tensor `name`: its largest axis that `fsdp` divides (the first on a tie), or none.

    Stacked blocks are split like a single block, never along the axis over the blocks.
    """
    first = int(is_stacked(name))
    splits = next(rule for pattern, rule in RULES if fnmatchcase(name, pattern))
    divisible = [axis for axis in range(first, len(shape)) if shape[axis] % fsdp == 0]
    if fsdp == 1 or not splits or not divisible:
        return P()
    largest = max(divisible, key=lambda axis: shape[axis])
    return P(*(AXES[1] if axis == largest else None for axis in range(largest + 1)))


def tree_shardings(tree: Tree, mesh: AnyMesh) -> Tree:
    """Return the shardings of all arrays of `tree`, a training state or a part of one.

    Arrays under a parameter's dotted name (also optimizer moments and averaged weights) are sharded by the rules; all
    others are replicated.
    """

    def sharding(path: tuple[Any, ...], leaf: jax.Array) -> NamedSharding:
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        return NamedSharding(mesh, param_spec(names[-1], leaf.shape, mesh.shape["fsdp"]) if names else P())

    return jax.tree_util.tree_map_with_path(sharding, tree)


# --- Several processes --------------------------------------------------------------------------------------

CLUSTER = ("JAX_COORDINATOR_ADDRESS", "MEGASCALE_COORDINATOR_ADDRESS", "SLURM_STEP_NODELIST", "OMPI_MCA_orte_hnp_uri")
"""Environment variables that indicate other processes of this run."""


def join_processes(text: str | None = None) -> None:
    """Join the other processes of this run, if there are any; call it before any access to devices.

    Args:
        text: "HOST:PORT,COUNT,INDEX": address of process 0, number of processes, index of this one; "auto" queries the
            cluster (Cloud TPU, GKE, Slurm, Open MPI), "off" does not; None queries it if the environment indicates one.

    Raises:
        ValueError: If `text` cannot be parsed, or is "auto" and no cluster is detected.
    """
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "").count(",")
    if text == "off" or (text is None and not hosts and not any(name in os.environ for name in CLUSTER)):
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if text in (None, "auto"):
        jax.distributed.initialize()
        return
    found = re.fullmatch(r"(\S+:\d+),(\d+),(\d+)", text or "")
    if not found or int(found[3]) >= int(found[2]):
        raise ValueError(f"distributed {text!r} is not understood: write it as HOST:PORT,COUNT,INDEX, or auto, or off")
    jax.distributed.initialize(found[1], int(found[2]), int(found[3]))


# --- From the host to the devices ---------------------------------------------------------------------------


def put_tree(tree: Tree, mesh: Mesh) -> Tree:
    """Put `tree` (JAX or NumPy arrays, the same in every process) on the devices, sharded by `tree_shardings`."""
    return jax.device_put(tree, None if mesh.size == 1 else tree_shardings(tree, mesh))


def put_batch(batch: Tree, mesh: Mesh) -> Tree:
    """Start copying this process's part of a batch (NumPy) to its devices; return the global batch, split over all."""
    if mesh.size == 1:
        return jax.device_put(batch)
    sharding = NamedSharding(mesh, BATCH)
    return jax.tree.map(lambda array: jax.make_array_from_process_local_data(sharding, array), batch)


def local_rows(array: jax.Array) -> np.ndarray:
    """Return this process's rows of an array that is split like a batch; the inverse of `put_batch`."""
    parts = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(part.data) for part in parts])


def sum_processes(counts: np.ndarray) -> np.ndarray:
    """Return the sum of `counts` over all processes."""
    return counts if jax.process_count() == 1 else multihost_utils.process_allgather(counts).sum(axis=0)


# --- Inside a compiled step; without a mesh these functions return their input --------------------------------


def split_batch(tree: Tree, mesh: AnyMesh | None) -> Tree:
    """Constrain `tree` to have the first axis of every array split over all devices."""
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, BATCH))


def gather(tree: Tree, mesh: AnyMesh | None) -> Tree:
    """Constrain `tree` to be replicated on every device."""
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, P()))


def scatter(tree: Tree, mesh: AnyMesh | None) -> Tree:
    """Constrain `tree` to the shardings of `tree_shardings`."""
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, tree_shardings(tree, mesh))


def own_shapes(arrays: Mapping[str, jax.Array]) -> list[tuple[int, ...]]:
    """Return the shapes of all arrays and of their shards on one device, and those of one block where stacked."""
    wholes, parts = {name: array.shape for name, array in arrays.items()}, shard_shapes(arrays)
    found = [*wholes.items(), *parts.items()]
    return [shape for name, shape in found] + [tensor_shape(name, shape) for name, shape in found]


def shard_shapes(arrays: Mapping[str, jax.Array]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every array's shard on one device."""
    return {name: array.sharding.shard_shape(array.shape) for name, array in arrays.items()}
