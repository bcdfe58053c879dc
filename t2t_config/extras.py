"""What the extras of the package install, and one line for those who have not installed them.

Imported before anything else, so that Ctrl-C is answered from the start: what takes long is imported where it is used.
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

SHARED = ("numpy", "jinja2", "markupsafe", "PIL", "rich", "safetensors", "tyro")
TORCH = ("torch", *SHARED)
JAX = (
    *("jax", "flax", "optax", "chex", "orbax.checkpoint", "grain", "array_record", "google.protobuf", "absl"),
    *("ml_dtypes", *SHARED),
)
BOTH = tuple(dict.fromkeys((*TORCH, *JAX)))
NEEDS = {
    "t2t_torch": ("torch", TORCH),
    "t2t_jax": ("jax", JAX),
    "parity": ("parity", BOTH),
    "t2t_common": ("jax", SHARED),
    "the demo": ("demo", (*BOTH, "sklearn")),
}
"""Package: the extra that it needs, and the modules that this installs, those of the base too."""

NAMED = 3
"""So many missing modules are named, and the others counted."""

MISUSED, INTERRUPTED = 2, 130
"""Exit codes, as in `t2t_common.io.cli`."""


def install_hint(extra: str) -> str:
    """The command that installs an extra. The name is on no index, so the command is one for a clone."""
    folder = _clone()
    where = "in a clone of the repository" if folder is None else f"in {folder}"
    return f'pip install -e ".[{extra}]" ({where})'


def missing(package: str) -> list[str]:
    """The modules that `package` needs and that are not installed."""
    return [name for name in NEEDS[package][1] if not _is_there(name)]


def complaint(package: str, modules: list[str]) -> str:
    """One line: what `package` needs, and the command that installs it."""
    rest = len(modules) - NAMED
    names = ", ".join(modules[:NAMED]) + (f" and {rest} more" if rest > 0 else "")
    return f"{package} needs what is not installed ({names}): {install_hint(NEEDS[package][0])}"


@contextlib.contextmanager
def explained(package: str) -> Iterator[None]:
    """Around the imports of a package: where its extra is missing, one line says what to install.

    `python -m package.command` ends there with exit code 2 (see `prepare_command`).

    Raises:
        ImportError: a module of the extra is missing.
    """
    if starts_command():
        prepare_command(package)
    try:
        yield
    except ModuleNotFoundError as error:
        raise explanation(package, error) from None


def starts_command() -> bool:
    """Whether Python looks for a module of ours to run, `python -m t2t_jax.train`; not for one that imports ours."""
    words = (word.removeprefix("-m") for word in sys.orig_argv[1:])
    return sys.argv[:1] == ["-m"] and any(word.partition(".")[0] in NEEDS for word in words)


def prepare_command(package: str) -> None:
    """Before a command of `package` imports anything: Ctrl-C ends it in one line, and so does a missing module;
    `--version` is answered at once."""
    if "--version" in sys.argv[1:]:
        print(f"{DISTRIBUTION} {version()}")
        sys.exit()
    end_at_ctrl_c()
    check_command(package)


def explanation(package: str, error: ModuleNotFoundError) -> ImportError:
    """`error` as one line that says what to install; itself where no extra brings the module."""
    if not error.name or _top(error.name) not in map(_top, BOTH):
        return error
    return ImportError(complaint(package, missing(package) or [error.name]), name=error.name)


def check_command(package: str) -> None:
    """Ends the process with one line and exit code 2 where a command of `package` lacks what it needs."""
    lacking = missing(package)
    if lacking:
        print(f"error: {complaint(package, lacking)}", file=sys.stderr)
        sys.exit(MISUSED)


def end_at_ctrl_c() -> None:
    """Until `restore_ctrl_c`, Ctrl-C ends the process in one line: while modules are imported there is nothing to save,
    and a KeyboardInterrupt would print where in them it struck."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored, as under nohup
        signal.signal(signal.SIGINT, _end)


def restore_ctrl_c() -> None:
    """From here on Ctrl-C raises KeyboardInterrupt again."""
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
    except ModuleNotFoundError:  # the package around it is missing
        return False


def _clone() -> Path | None:
    """The folder of the repository that this was imported or installed from; None if that is not known."""
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
    """Of the installed package; of a clone that is not installed, what its pyproject.toml says."""
    import importlib.metadata

    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        import tomllib

        file = ROOT / "pyproject.toml"
        return tomllib.loads(file.read_text(encoding="utf-8"))["project"]["version"] if file.is_file() else "unknown"
