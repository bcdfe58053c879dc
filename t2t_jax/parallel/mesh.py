"""One mesh of devices with the axes `data` and `fsdp`, and how a training run's arrays lie on it.

A batch is split over both axes. Parameters, optimiser and average are split over `fsdp` by path rules, and gathered
where a step computes with them, as ZeRO does (arXiv 1910.02054, stage 3); gradients are scattered back. So what
travels between devices is weights and gradients, never images, tokens or logits of more than one device's part.
Axes are of type Auto: what a step constrains here is what the compiler propagates.
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
"""The first axis over all devices, `fsdp` fastest."""

RULES: tuple[tuple[str, bool], ...] = (
    ("*token", False),
    ("pos_embed", False),
    ("*.bias", False),
    ("*.scale", False),
    ("*", True),
)
"""Shell-style pattern of a parameter's dotted name -> whether `fsdp` splits it; the first that matches holds. What is
small stays whole: a message of its own would cost more than the memory."""

Tree = TypeVar("Tree")
AnyMesh = Mesh | AbstractMesh
"""Of devices, or of their number alone: enough to lower a program."""


def mesh_shape(text: str | None, num_devices: int) -> tuple[int, int]:
    """Sizes of the axes (data, fsdp) that `text` names, such as "data=4,fsdp=2"; None takes all devices for data.

    An axis that is not named has size 1.

    Raises:
        ValueError: not understood, or more devices than there are.
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
    """The mesh of this run's devices, those of all processes; see `mesh_shape`. One process may leave some unused.

    Raises:
        ValueError: not understood, or not as many devices as there are.
    """
    devices = jax.devices()
    shape = mesh_shape(text, len(devices))
    if jax.process_count() > 1 and math.prod(shape) != len(devices):
        raise ValueError(f"mesh {text!r} leaves some of the {len(devices)} devices unused: name all of them")
    return jax.make_mesh(shape, AXES, (AxisType.Auto,) * len(AXES), devices=devices[: math.prod(shape)])


def check_batch(
    batch_size: int, mesh: AnyMesh, *, parts: int = 1, group: int | None = None, group_in_parts: bool = False
) -> None:
    """Whether every device gets an equal part of a batch, each part whole micro-batches and whole groups of mixup.

    Args:
        batch_size: images of a step.
        mesh: of the run.
        parts: micro-batches of a step.
        group: images among which mixup finds partners; None where none are mixed.
        group_in_parts: whether they are found within a micro-batch.

    Raises:
        ValueError: it does not; the message says what would.
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
            f"mixup_group {group} does not divide the {own} images of each device, so that images would travel "
            f"between devices: choose {remedy}batch size or mesh"
        )


def param_spec(name: str, shape: Sequence[int], fsdp: int) -> P:
    """How the tensor called `name` is split: its largest axis that `fsdp` divides (the first of equals), or not.

    Of stacked blocks each is split, as it would be alone.
    """
    first = int(is_stacked(name))
    splits = next(rule for pattern, rule in RULES if fnmatchcase(name, pattern))
    divisible = [axis for axis in range(first, len(shape)) if shape[axis] % fsdp == 0]
    if fsdp == 1 or not splits or not divisible:
        return P()
    largest = max(divisible, key=lambda axis: shape[axis])
    return P(*(AXES[1] if axis == largest else None for axis in range(largest + 1)))


def tree_shardings(tree: Tree, mesh: AnyMesh) -> Tree:
    """Shardings of every array of `tree`, a state or part of one.

    An array under a parameter's dotted name (moments of the optimiser and the average have the same) lies as the
    rules say, any other is whole on every device.
    """

    def sharding(path: tuple[Any, ...], leaf: jax.Array) -> NamedSharding:
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        return NamedSharding(mesh, param_spec(names[-1], leaf.shape, mesh.shape["fsdp"]) if names else P())

    return jax.tree_util.tree_map_with_path(sharding, tree)


# --- Several processes --------------------------------------------------------------------------------------

CLUSTER = ("JAX_COORDINATOR_ADDRESS", "MEGASCALE_COORDINATOR_ADDRESS", "SLURM_STEP_NODELIST", "OMPI_MCA_orte_hnp_uri")
"""Environment variables that tell of other processes of this run."""


def join_processes(text: str | None = None) -> None:
    """Makes this process one of a run's, if there are others; before anything else asks for devices.

    Args:
        text: "HOST:PORT,COUNT,INDEX": address of process 0, how many there are, which this is; "auto" asks the
            cluster (Cloud TPU, GKE, Slurm, Open MPI), "off" does not; None asks it if the environment tells of one.

    Raises:
        ValueError: not understood, or "auto" where no cluster is known.
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
    """`tree`, numpy's arrays too, the same in every process, on the devices as `tree_shardings` says."""
    return jax.device_put(tree, None if mesh.size == 1 else tree_shardings(tree, mesh))


def put_batch(batch: Tree, mesh: Mesh) -> Tree:
    """This process's part of a batch (numpy) as part of the whole batch, split over all devices, on its way there."""
    if mesh.size == 1:
        return jax.device_put(batch)
    sharding = NamedSharding(mesh, BATCH)
    return jax.tree.map(lambda array: jax.make_array_from_process_local_data(sharding, array), batch)


def local_rows(array: jax.Array) -> np.ndarray:
    """This process's rows of an array that is split as a batch; the inverse of `put_batch`."""
    parts = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(part.data) for part in parts])


def sum_processes(counts: np.ndarray) -> np.ndarray:
    """The sum of every process's `counts`."""
    return counts if jax.process_count() == 1 else multihost_utils.process_allgather(counts).sum(axis=0)


# --- Inside a compiled step; without a mesh all of these leave everything as it is ---------------------------


def split_batch(tree: Tree, mesh: AnyMesh | None) -> Tree:
    """`tree` with the first axis of every array split over all devices."""
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, BATCH))


def gather(tree: Tree, mesh: AnyMesh | None) -> Tree:
    """`tree` whole on every device."""
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, P()))


def scatter(tree: Tree, mesh: AnyMesh | None) -> Tree:
    """`tree` as `tree_shardings` says."""
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, tree_shardings(tree, mesh))


def own_shapes(arrays: Mapping[str, jax.Array]) -> list[tuple[int, ...]]:
    """Shapes of all arrays, of one device's parts of them, and of one block's part of both where blocks are stacked."""
    wholes, parts = {name: array.shape for name, array in arrays.items()}, shard_shapes(arrays)
    found = [*wholes.items(), *parts.items()]
    return [shape for name, shape in found] + [tensor_shape(name, shape) for name, shape in found]


def shard_shapes(arrays: Mapping[str, jax.Array]) -> dict[str, tuple[int, ...]]:
    """The shape of one device's part of every array."""
    return {name: array.sharding.shard_shape(array.shape) for name, array in arrays.items()}
