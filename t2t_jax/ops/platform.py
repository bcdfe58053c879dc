"""What a program is traced for, platform and devices: some forms of the same numbers pay on one and cost on another."""

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
"""`with traced_for("tpu"):` traces for TPUs wherever it runs; outside, for the default backend. What JAX has traced for
one platform it does not take for another."""

batch_on = jax.make_user_context(None)
"""`with batch_on(mesh):` traces for a batch whose first axis is split over all devices of `mesh`; outside, nobody knows
which devices hold it."""
ONE_DEVICE = AbstractMesh((1,), ("data",))


def platform() -> str:
    """Of what is traced now: cpu, gpu or tpu."""
    return traced_for.value or jax.default_backend()


def on_cpu() -> bool:
    """Whether what is traced now is for a CPU."""
    return platform() == "cpu"


def takes_tpu_kernels() -> bool:
    """Whether what is traced now is for TPUs and known which of them hold the batch: no compiler splits a kernel."""
    return platform() == "tpu" and batch_on.value is not None


def traced_on(mesh: Mesh | AbstractMesh | None, function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """`function`, traced for a batch that is split over the devices of `mesh`; None for one device."""

    @functools.wraps(function)
    def call(*args: Arguments.args, **options: Arguments.kwargs) -> Result:
        with batch_on(ONE_DEVICE if mesh is None else mesh):
            return function(*args, **options)

    return call


def on_each_device(function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """`function` of arrays with the batch in front, as every device computes it of its own part."""
    mesh = batch_on.value
    assert mesh is not None, "which devices hold the batch is not known"
    if mesh.size == 1:
        return function(*arrays)
    batch = P(mesh.axis_names)
    return jax.shard_map(function, mesh=mesh, in_specs=batch, out_specs=batch, check_vma=False)(*arrays)
