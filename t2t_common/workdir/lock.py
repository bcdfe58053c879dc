"""One run per workdir: a second process on it is refused, and a run that has lost its workdir notices."""

from __future__ import annotations

import contextlib
import os
import platform
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".lock"

_BEYOND = 1 << 30
"""Windows lets nobody read bytes that are locked, so that one far behind the text is."""

_ATTEMPTS = 10
"""To get a lock whose file is removed and made again all the time."""

_held: set[IO[str]] = set()


class LostWorkdirError(ValueError):
    """What a run writes into is no longer its own, or no longer there: it must not write any more."""


def _let_go() -> None:
    for file in _held:
        file.close()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)  # or a worker that outlives its parent would go on holding the lock


class Lock:
    """A workdir that this process holds; see `locked`."""

    def __init__(self, workdir: Path) -> None:
        """Raises ValueError if another run holds it, or the folder cannot be written to."""
        self._workdir, self._path = workdir, workdir / LOCK_FILE
        self._file = self._take()
        self._is_known_again = _is_at(self._file, self._path)  # not on every network's file system

    def check(self) -> str | None:
        """To be called now and then while the run goes on: None if all is well, a line for the user if the lock had
        been removed and could be taken again.

        Raises:
            LostWorkdirError: the workdir is gone, or another run has it.
        """
        if _is_at(self._file, self._path) if self._is_known_again else self._path.exists():
            return None
        if not self._workdir.is_dir():
            raise LostWorkdirError(
                f"{self._workdir} was deleted while the run went on: nothing more can be written there; start again, "
                "with another --workdir if need be"
            )
        try:
            file = self._take()
        except ValueError as error:
            raise LostWorkdirError(
                f"the lock {self._path} was removed while the run went on, and is not to be had again ({error}); this "
                "run ends here"
            ) from error
        self.release()
        self._file = file
        return f"the lock {self._path} was removed while the run went on: taken again; do not delete it"

    def release(self) -> None:
        """Frees the workdir."""
        _held.discard(self._file)
        self._file.close()

    def _take(self) -> IO[str]:
        for attempt in range(_ATTEMPTS):
            file = _open(self._path)
            try:
                if not _try_lock(file):
                    file.seek(0)
                    holder = file.read(200).strip() or "another process"
                    raise ValueError(f"{self._workdir} is in use by {holder}: wait for it, or choose another --workdir")
                if attempt + 1 < _ATTEMPTS and not _is_at(file, self._path):  # removed since it was opened
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
    """Holds `workdir` for this process; the system frees it when the process ends, however it ends.

    The file stays; it says which process holds the lock, or was the last to do so.

    Raises:
        ValueError: another run holds it, the lock is a link, or the folder cannot be written to.
    """
    lock = Lock(workdir)
    try:
        yield lock
    finally:
        lock.release()


def is_locked(workdir: Path) -> bool:
    """Whether a process holds `workdir`."""
    path = workdir / LOCK_FILE
    if not path.is_file() or path.is_symlink():  # no such file: no run was ever here
        return False
    try:
        with path.open() as file:
            return not _try_lock(file, shared=True)
    except OSError:
        return False


def _open(path: Path) -> IO[str]:
    """Opens the lock's file, made if need be; never what a link leads to, as it is written over."""
    if path.is_symlink():
        raise ValueError(f"the lock {path} is a link to another file, which would be written over: delete the link")
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
    what = "has another name elsewhere, a hard link" if stat.S_ISREG(found.st_mode) else "is no plain file"
    raise ValueError(f"the lock {path} {what}: delete it")


def _is_at(file: IO[str], path: Path) -> bool:
    """Whether `path` is still the file that is open."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.lstat())
    except OSError:
        return False


def _try_lock(file: IO[str], *, shared: bool = False) -> bool:
    """Whether the lock could be had, without waiting for it.

    Raises:
        OSError: the file system knows no locks.
    """
    if fcntl is not None:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
    import msvcrt

    file.seek(_BEYOND)
    try:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except PermissionError:
        return False
    finally:
        file.seek(0)
    return True
