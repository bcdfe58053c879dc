"""TPU topologies by name, for compilation by libtpu without attached TPUs."""

from __future__ import annotations

import importlib.util
import math
import re

from jax.experimental import topologies

from t2t_config.extras import install_hint

HBM_GIB = {"TPU v4": 32, "TPU v5 lite": 16, "TPU v5": 95, "TPU v6 lite": 32}
"""Memory per device in GiB by device kind (cloud.google.com/tpu/docs, system architecture). The compiler reserves a
little of it and decides whether a program fits."""

_FLAT = {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBE = {8: "2x2x1", 16: "2x2x2", 32: "2x2x4", 64: "2x4x4", 128: "4x4x4"}  # keys count cores, two per chip
_SHAPES = {"v5e": _FLAT, "v6e": _FLAT, "v5p": _CUBE}
ALIASES = {f"{kind}-{count}": f"{kind}:{shape}" for kind, shapes in _SHAPES.items() for count, shape in shapes.items()}
ALIASES |= {alias.replace("v5e", "v5litepod"): name for alias, name in ALIASES.items() if alias.startswith("v5e")}
"""Google Cloud accelerator types -> topologies."""


def topology_name(name: str) -> str:
    """Return the topology for `name`: v5e:4x4 unchanged, v5e:4x4 for v5e-16 and v5litepod-16.

    Raises:
        ValueError: If `name` is neither a topology nor an accelerator type.
    """
    name = ALIASES.get(name, name)
    if not re.fullmatch(r"v\d+[a-z]*:\d+(x\d+){1,2}", name):
        raise ValueError(
            f"topology {name!r} is not understood: write it as v5e:4x4, or choose one of {', '.join(ALIASES)}"
        )
    return name


def num_chips(name: str) -> int:
    """Return the number of chips of a topology, computed from its name."""
    return math.prod(int(side) for side in topology_name(name).split(":")[1].split("x"))


def has_libtpu() -> bool:
    """Return whether libtpu, the TPU compiler, is installed."""
    return importlib.util.find_spec("libtpu") is not None


def tpu_topology(name: str) -> topologies.TopologyDescription:
    """Return the description of topology `name`, with its devices.

    Raises:
        ValueError: If libtpu is not installed or does not know the topology.
    """
    name = topology_name(name)
    if not has_libtpu():
        raise ValueError(f"libtpu is missing: {install_hint('tpu')}, or add --export-only, which only lowers")
    try:
        return topologies.get_topology_desc(topology_name=name, platform="tpu")
    except Exception as error:  # raised by the runtime, with various types
        reason = str(error).splitlines()[0].split("Failed to find")[0]
        raise ValueError(f"libtpu does not know the topology {name!r} ({reason})") from error
