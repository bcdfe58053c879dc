"""Lock of a workdir: only one run may use it, and a run that loses its workdir detects this.

The lock itself is filelock's `lock_descriptor`, on every system. Its `FileLock` would do for less than what
tests/common/workdir/test_lock.py shows: it takes a hard link for its own file (and so we would write over another one),
does not notice that its file is removed or replaced while it is held, and cannot be asked without creating the file.
"""

from __future__ import annotations

import contextlib
import os
import platform
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from filelock import lock_descriptor

from t2t_common.io.files import same_file

LOCK_FILE = ".lock"

_ATTEMPTS = 10
"""Attempts to take a lock whose file is repeatedly removed and recreated."""

_held: set[IO[str]] = set()


class LostWorkdirError(ValueError):
    """Raised when the workdir has been deleted or taken by another run: the run must stop writing."""


def _let_go() -> None:
    for file in _held:
        file.close()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)  # else a worker that outlives its parent would keep the lock


class Lock:
    """Lock on a workdir held by this process; see `locked`."""

    def __init__(self, workdir: Path) -> None:
        """Raise ValueError if another run holds the lock, or the folder is not writable."""
        self._workdir, self._path = workdir, workdir / LOCK_FILE
        self._file = self._take()
        self._is_known_again = same_file(self._file, self._path)  # false on some network file systems

    def check(self) -> str | None:
        """Check during the run that the lock is still held.

        Returns:
            None, or a message for the user if the lock file had been removed and the lock was taken again.

        Raises:
            LostWorkdirError: The workdir no longer exists, or another run has taken it.
        """
        if same_file(self._file, self._path) if self._is_known_again else self._path.exists():
            return None
        if not self._workdir.is_dir():
            raise LostWorkdirError(
                f"{self._workdir} was deleted during the run: nothing more can be written there; start again, "
                "if necessary with another --workdir"
            )
        try:
            file = self._take()
        except ValueError as error:
            raise LostWorkdirError(
                f"the lock {self._path} was removed during the run, and cannot be taken again ({error}); this "
                "run ends here"
            ) from error
        self.release()
        self._file = file
        return f"the lock {self._path} was removed during the run: taken again; do not delete it"

    def release(self) -> None:
        """Release the lock."""
        _held.discard(self._file)
        self._file.close()

    def _take(self) -> IO[str]:
        for attempt in range(_ATTEMPTS):
            file = _open(self._path)
            try:
                if not lock_descriptor(file.fileno(), blocking=False):
                    raise ValueError(
                        f"{self._workdir} is in use by {_holder(file)}: wait for it, or choose another --workdir"
                    )
                if attempt + 1 < _ATTEMPTS and not same_file(file, self._path):  # removed since it was opened
                    file.close()
                    continue
                file.seek(0)
                file.truncate(0)
                file.write(f"process {os.getpid()} of {platform.node()}\n")
                file.flush()
            except OSError as error:
                file.close()
                raise ValueError(f"cannot lock {self._path} ({error.strerror}): choose another folder") from error
            except BaseException:
                file.close()
                raise
            _held.add(file)
            return file
        raise AssertionError("the last attempt returns or raises")


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[Lock]:
    """Lock `workdir` for this process. The operating system releases the lock when the process ends for any reason.

    The lock file is not removed; it names the process that holds the lock or last held it.

    Raises:
        ValueError: Another run holds the lock, the lock file is a link, or the folder is not writable.
    """
    lock = Lock(workdir)
    try:
        yield lock
    finally:
        lock.release()


def is_locked(workdir: Path) -> bool:
    """Return whether a process holds the lock of `workdir`."""
    path = workdir / LOCK_FILE
    if not path.is_file() or path.is_symlink():  # without a lock file, no run ever used this folder
        return False
    try:
        # Some network file systems lock only files that are open for writing.
        with path.open("r+" if os.access(path, os.W_OK) else "r") as file:
            return not lock_descriptor(file.fileno(), blocking=False)
    except OSError:
        return False


def _open(path: Path) -> IO[str]:
    """Open the lock file, creating it if needed. Links are refused, as their target would be overwritten."""
    if path.is_symlink():
        raise ValueError(f"the lock {path} is a link to another file, which would be overwritten: delete the link")
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        number = os.open(path, flags, 0o666)
    except OSError as error:
        why = f"{path.name}: {error.strerror}"
        raise ValueError(f"cannot write to {path.parent} ({why}): choose another folder") from error
    found = os.fstat(number)
    if stat.S_ISREG(found.st_mode) and found.st_nlink < 2:
        return os.fdopen(number, "r+", encoding="utf-8", errors="replace")
    os.close(number)
    what = "has a hard link" if stat.S_ISREG(found.st_mode) else "is not a regular file"
    raise ValueError(f"the lock {path} {what}: delete it")


def _holder(file: IO[str]) -> str:
    """Return the process that holds the lock, as it wrote in the file; Windows may not let others read it."""
    with contextlib.suppress(OSError):
        return file.read(200).strip() or "another process"
    return "another process"
