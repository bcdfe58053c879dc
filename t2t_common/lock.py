"""One run per workdir: a second process on it is refused."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

LOCK_FILE = ".lock"

_held: set[IO[str]] = set()


def _let_go() -> None:
    for file in _held:
        file.close()
    _held.clear()


os.register_at_fork(after_in_child=_let_go)  # or a worker that outlives its killed parent would go on holding the lock


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds `workdir` for this process; the system frees it when the process ends, however it ends.

    The file stays; it says which process holds the lock, or was the last to do so.

    Raises:
        ValueError: another run holds it, or the folder cannot be written to.
    """
    path = workdir / LOCK_FILE
    try:
        file = path.open("a+")
    except OSError as error:
        raise ValueError(f"cannot write to {workdir} ({error.strerror}): choose another folder") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise ValueError(f"{workdir} is in use by {holder}: wait for it, or choose another --workdir") from None
        except OSError as error:
            raise ValueError(f"cannot lock {path} ({error.strerror}): choose another folder") from error
        file.truncate(0)
        file.write(f"process {os.getpid()} of {os.uname().nodename}\n")
        file.flush()
        _held.add(file)
        try:
            yield
        finally:
            _held.discard(file)


def is_locked(workdir: Path) -> bool:
    """Whether a process holds `workdir`."""
    try:
        with (workdir / LOCK_FILE).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError:  # no such file: no run was ever here
        return False
