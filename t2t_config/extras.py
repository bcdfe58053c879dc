"""Dependencies of the package's extras, and one-line errors if they are not installed.

Imported before anything else, so that Ctrl-C is handled from the start: slow imports are deferred to where they are
used.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

DISTRIBUTION = "t2t-vit"
ROOT = Path(__file__).parents[1]

SHARED = ("numpy", "filelock", "jinja2", "markupsafe", "PIL", "rich", "safetensors", "tyro")
TORCH = ("torch", *SHARED)
JAX = (
    *("jax", "flax", "optax", "chex", "orbax.checkpoint", "grain", "array_record", "google.protobuf", "absl"),
    *("ml_dtypes", *SHARED),
)
BOTH = tuple(dict.fromkeys((*TORCH, *JAX)))
NEEDS = {
    "t2t_torch": ("torch", TORCH),
    "t2t_jax": ("jax", JAX),
    "t2t_parity": ("parity", (*BOTH, "parity")),
    "t2t_common": ("jax", SHARED),
    "the demo": ("demo", (*BOTH, "parity", "sklearn")),
}
"""Package -> the extra that it needs, and the modules that this installs, including those of the base package."""

WITH_PARITY = ("parity", "demo")
"""Extras that need the distribution torch-jax-parity."""

NAMED = 3
"""Maximum number of missing modules that are named; the others are counted."""

MISUSED, INTERRUPTED = 2, 130
"""Exit codes, as in `t2t_common.io.cli`."""


def install_hint(extra: str) -> str:
    """Return the command that installs an extra. The package is on no index, so the command is for a clone; neither
    is `parity`, a distribution of its own from the same repository."""
    folder = _clone()
    where = "in a clone of the repository" if folder is None else f"in {folder}"
    parity = "-e packaging/parity " if extra in WITH_PARITY else ""
    return f'pip install {parity}-e ".[{extra}]" ({where})'


def missing(package: str) -> list[str]:
    """Return the modules that `package` needs and that are not installed."""
    return [name for name in NEEDS[package][1] if not _is_there(name)]


def complaint(package: str, modules: list[str]) -> str:
    """Return a one-line message: what `package` needs, and the command that installs it."""
    rest = len(modules) - NAMED
    names = ", ".join(modules[:NAMED]) + (f" and {rest} more" if rest > 0 else "")
    return f"{package} needs what is not installed ({names}): {install_hint(NEEDS[package][0])}"


@contextlib.contextmanager
def explained(package: str) -> Iterator[None]:
    """Context manager for the imports of a package: if its extra is missing, the error says what to install.

    `python -m package.command` then exits with code 2 (see `prepare_command`).

    Raises:
        ImportError: If a module of the extra is missing.
    """
    if starts_command():
        prepare_command(package)
    try:
        yield
    except ModuleNotFoundError as error:
        raise explanation(package, error) from None


def starts_command() -> bool:
    """Return whether Python is about to run one of our modules, as `python -m t2t_jax.train`, not one that imports
    ours."""
    words = (word.removeprefix("-m") for word in sys.orig_argv[1:])
    return sys.argv[:1] == ["-m"] and any(word.partition(".")[0] in NEEDS for word in words)


def prepare_command(package: str) -> None:
    """Prepare a command of `package` before anything is imported: answer `--version`, exit with one line at Ctrl-C or
    if a module is missing."""
    if "--version" in sys.argv[1:]:
        print(f"{DISTRIBUTION} {version()}")
        sys.exit()
    end_at_ctrl_c()
    check_command(package)


def explanation(package: str, error: ModuleNotFoundError) -> ImportError:
    """Return `error` as a one-line message that says what to install; unchanged if no extra provides the module."""
    if not error.name or _top(error.name) not in map(_top, BOTH):
        return error
    return ImportError(complaint(package, missing(package) or [error.name]), name=error.name)


def check_command(package: str) -> None:
    """Exit with one line and code 2 if a dependency of a command of `package` is missing."""
    lacking = missing(package)
    if lacking:
        print(f"error: {complaint(package, lacking)}", file=sys.stderr)
        sys.exit(MISUSED)


def end_at_ctrl_c() -> None:
    """Let Ctrl-C exit the process with one line until `restore_ctrl_c` is called.

    During imports there is nothing to save, and a KeyboardInterrupt would print a traceback.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not if it is ignored, as under nohup
        signal.signal(signal.SIGINT, _end)


def restore_ctrl_c() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    os.write(2, b"stopped\n")
    os._exit(INTERRUPTED)


def _top(name: str) -> str:
    return name.partition(".")[0]


def _is_there(name: str) -> bool:
    import importlib.util

    try:
        return name in sys.modules or importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False


def _clone() -> Path | None:
    """Return the folder of the repository that this was imported or installed from; None if unknown."""
    import importlib.metadata
    import json
    from urllib.parse import unquote, urlsplit

    if (ROOT / "pyproject.toml").is_file():
        return ROOT
    try:
        noted = importlib.metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
        address = urlsplit(json.loads(noted or "{}").get("url", ""))
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None
    folder = Path(unquote(address.path))
    return folder if address.scheme == "file" and (folder / "pyproject.toml").is_file() else None


def version() -> str:
    """Return the version of the installed package, or for a clone that is not installed, of its pyproject.toml."""
    import importlib.metadata

    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        import tomllib

        file = ROOT / "pyproject.toml"
        return tomllib.loads(file.read_text(encoding="utf-8"))["project"]["version"] if file.is_file() else "unknown"
