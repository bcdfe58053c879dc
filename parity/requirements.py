"""Error messages of `import parity` and `python -m parity` when PyTorch or JAX is not installed."""

from __future__ import annotations

from t2t_config import extras


def prepare_command() -> None:
    """Prepare `python -m parity` before anything is imported; see `t2t_config.extras.prepare_command`."""
    if extras.starts_command():
        extras.prepare_command("parity")


def explanation(error: ModuleNotFoundError) -> ImportError:
    """Return an `ImportError` to replace `error`: it names the missing package and the command that installs it."""
    return extras.explanation("parity", error)
