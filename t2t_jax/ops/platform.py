"""Platform and devices that a program is traced for; the fastest implementation depends on them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

traced_for = jax.make_user_context(None)
"""`with traced_for("tpu"):` traces for TPUs on any machine; without it, JAX's default backend is assumed. JAX does not
reuse traces across platforms."""

batch_on = jax.make_user_context(None)
"""`with batch_on(mesh):` traces for a batch with its first axis split over all devices of `mesh`; without it, the
devices that hold the batch are unknown."""
ONE_DEVICE = AbstractMesh((1,), ("data",))


def platform() -> str:
    """Return the platform of the current trace: cpu, gpu or tpu."""
    return traced_for.value or jax.default_backend()


def on_cpu() -> bool:
    """Return whether the current trace is for a CPU."""
    return platform() == "cpu"


def takes_tpu_kernels() -> bool:
    """Return whether the trace is for TPUs with known devices of the batch; the compiler cannot partition a kernel."""
    return platform() == "tpu" and batch_on.value is not None


def traced_on(mesh: Mesh | AbstractMesh | None, function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Wrap `function` to be traced for a batch split over the devices of `mesh` (None for one device)."""

    @functools.wraps(function)
    def call(*args: Arguments.args, **options: Arguments.kwargs) -> Result:
        with batch_on(ONE_DEVICE if mesh is None else mesh):
            return function(*args, **options)

    return call


def on_each_device(function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """Apply `function` on each device to its part of `arrays`, which are split along the first axis, the batch."""
    mesh = batch_on.value
    assert mesh is not None, "which devices hold the batch is not known"
    if mesh.size == 1:
        return function(*arrays)
    batch = P(mesh.axis_names)
    return jax.shard_map(function, mesh=mesh, in_specs=batch, out_specs=batch, check_vma=False)(*arrays)
