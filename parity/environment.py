"""Properties of the environment that affect numerical results: versions, devices, precision settings."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

import jax
import torch

CONFIG: Any = jax.config
"""`jax.config`, typed as `Any`: JAX defines its options at run time, so type checkers do not know their names."""


def fingerprint() -> dict[str, Any]:
    """Return versions, devices, thread count and precision settings as a JSON-serializable dictionary."""
    packages = ("torch", "jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "versions": {name: _version(name) for name in packages},
        "torch_threads": torch.get_num_threads(),
        "torch_matmul_precision": torch.get_float32_matmul_precision(),
        "torch_device": "cuda" if torch.cuda.is_available() else "cpu",
        "jax_devices": [device.device_kind for device in jax.devices()],
        "jax_enable_x64": bool(CONFIG.jax_enable_x64),
        "jax_default_matmul_precision": CONFIG.jax_default_matmul_precision,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
