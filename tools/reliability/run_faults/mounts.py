"""Little disks of their own: full, read-only, or gone. In a mount namespace, so that nothing of it stays."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

INSIDE = "RELIABILITY_MOUNT_NAMESPACE"
"""Environment variable of a process that may mount what it likes."""


def enter_namespace(module: str, args: Sequence[str]) -> None:
    """Starts `python -m module` anew where it may mount, unless this is there.

    Raises:
        ValueError: the system allows none.
    """
    if INSIDE in os.environ:
        return
    unshare = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
    try:
        subprocess.run([*unshare, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(f"cannot mount disks for the campaign ({error}): run it as root, or with sudo") from error
    os.environ[INSIDE] = "1"
    os.execvp(unshare[0], [*unshare, sys.executable, "-m", module, *args])


@contextlib.contextmanager
def disk(folder: Path, megabytes: int = 64) -> Iterator[Path]:
    """A disk of that size at `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    mount("-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False, capture_output=True)


@contextlib.contextmanager
def full(folder: Path, free: int) -> Iterator[None]:
    """While open, the disk of `folder` has about `free` bytes left."""
    filler = folder / "filler"
    with filler.open("wb") as file, contextlib.suppress(OSError):
        while True:
            os.write(file.fileno(), bytes(4096))
    os.truncate(filler, max(0, filler.stat().st_size - free))
    try:
        yield
    finally:
        filler.unlink()


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """While open, nothing can be written to `folder`, whoever asks; files that are open stay as they are."""
    mount("--bind", str(folder), str(folder))
    mount("-o", "remount,bind,ro", str(folder))
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def vanish(folder: Path) -> None:
    """The disk at `folder` is torn out; an empty folder stays."""
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def mount(*args: str) -> None:
    subprocess.run(["mount", *args], check=True)
