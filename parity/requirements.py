"""What `import parity` and `python -m parity` say where PyTorch or JAX is not installed; imported only then."""

from __future__ import annotations

from t2t_config import extras


def prepare_command() -> None:
    """What `python -m parity` does before anything is imported; see `t2t_config.extras.prepare_command`."""
    if extras.starts_command():
        extras.prepare_command("parity")


def explanation(error: ModuleNotFoundError) -> ImportError:
    """What is missing, and the command that installs it, in place of `error`."""
    return extras.explanation("parity", error)
