"""One-line errors where PyTorch, JAX or another package that parity needs is not installed, and the version."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
import tomllib
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
"""The repository, if this is not an installed copy."""

PROJECT = CHECKOUT / "packaging" / "parity" / "pyproject.toml"
"""The file that describes the distribution; it is there in a checkout only."""

DISTRIBUTION = "torch-jax-parity"

NEEDS = {
    "numpy": "numpy>=2.0",
    "torch": "torch>=2.6",
    "jax": "jax>=0.10",
    "flax": "flax>=0.12.8",
    "optax": "optax>=0.2.8",
    "ml_dtypes": "ml_dtypes>=0.5",
    "rich": "rich>=13",
}
"""Module -> what pip installs for it; the dependencies of the distribution."""


def missing() -> list[str]:
    """Return the modules that parity needs and that are not installed."""
    return [name for name in NEEDS if name not in sys.modules and importlib.util.find_spec(name) is None]


def complaint(modules: list[str]) -> str:
    """Return a one-line message: which modules are not installed, and the command that installs them."""
    wanted = " ".join(f'"{NEEDS[name]}"' for name in modules)
    return f"parity needs what is not installed ({', '.join(modules)}): pip install {wanted}"


def explanation(error: ModuleNotFoundError) -> ImportError:
    """Return `error` as a one-line message that says what to install; unchanged if parity does not need the module."""
    top = (error.name or "").partition(".")[0]
    if top not in NEEDS:
        return error
    return ImportError(complaint(missing() or [top]), name=top)


def version() -> str:
    """Return the version of the installed distribution, or of the checkout that this is."""
    if PROJECT.is_file():
        return tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["version"]
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
