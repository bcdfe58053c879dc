"""Cached downloads: resumed after interruptions, verified, and either complete or absent.

Standard library only. A download is written to NAME.part beside its final name; the server's version mark (a strong
ETag) and the size are in NAME.part.version, so that parts of two versions are never combined. NAME.json stores the
address and size of a complete file, so that a truncated file, or another one of that name, is not mistaken for it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import http.client
import json
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

from t2t_config.text import readable
from t2t_config.weights.urls import is_safe, open_address

TIMEOUT = 30.0
"""Time without an answer or a byte, in seconds, after which a connection counts as broken."""
ATTEMPTS = 5
"""Maximum number of consecutive connections without progress."""
PAUSE = 1.0
"""Time before the second of them, in seconds; doubled each time."""
RESTARTS = 4
"""Maximum number of restarts from the beginning, if the server cannot resume or has another version than before."""
MOST = 1 << 31
"""Maximum size in bytes of a file whose size is not known in advance: larger than any published file."""
CHUNK = 1 << 18


class _BrokenError(Exception):
    """The connection failed; another one may resume the download."""


@dataclasses.dataclass(frozen=True)
class _Wanted:
    """File to download; `digests` maps an algorithm of hashlib to the first digits of the digest, or all of them."""

    url: str
    num_bytes: int | None
    digests: Mapping[str, str]

    def wrong_digest(self, path: Path) -> str:
        """Describe the digest mismatch of `path`; '' if there is none."""
        for algorithm, expected in self.digests.items():
            with path.open("rb") as file:
                found = hashlib.file_digest(file, algorithm).hexdigest()
            if not found.startswith(expected):
                name = algorithm.upper().replace("SHA", "SHA-")
                return f"its {name} does not begin with {expected[:16]}"
        return ""


class _Part:
    """Partially downloaded file, with its version."""

    def __init__(self, file: IO[bytes], url: str) -> None:
        self.file, self._url, self._restarts = file, url, 0
        self.path = Path(file.name)
        self.version = Path(f"{file.name}.version")

    @property
    def size(self) -> int:
        return os.fstat(self.file.fileno()).st_size

    def noted(self) -> tuple[str, int | None]:
        """Return the version mark and the size of the whole file, as reported by the server; ('', None) if unknown."""
        text = self.version.read_text(encoding="utf-8", errors="replace") if self.version.is_file() else ""
        mark, _, size = text.partition("\n")  # files written by earlier versions of this module have no size
        if not re.fullmatch(r'"[!#-~]*"', mark) or not re.fullmatch("[0-9]{0,18}", size):
            return "", None
        return mark, int(size) if size else None

    def note(self, mark: str, size: int | None) -> None:
        self.version.write_text(f"{mark}\n{'' if size is None else size}", encoding="utf-8")

    def forget(self) -> None:
        """Discard the data received so far."""
        self.file.truncate(0)
        self.version.unlink(missing_ok=True)

    def restart(self) -> None:
        """Discard the data received so far, to start again.

        Raises:
            ValueError: If there were too many restarts.
        """
        self._restarts += self.size > 0
        self.forget()
        if self._restarts > RESTARTS:
            raise ValueError(
                f"cannot download {self._url}: {self._restarts} times it was interrupted and could not be "
                "resumed, or the file had changed: try again later, or download it by other means"
            )


def cache_dir() -> Path:
    """Return the download folder: $T2T_CACHE, else $XDG_CACHE_HOME/t2t-vit, else ~/.cache/t2t-vit."""
    if own := os.environ.get("T2T_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "t2t-vit"


def cached_download(
    url: str,
    *,
    num_bytes: int | None = None,
    sha256: str | None = None,
    sha384: str | None = None,
    folder: str | Path | None = None,
    progress: bool | None = None,
) -> Path:
    """Return the file at `url` from the cache, downloading it if it is missing. Concurrent processes wait for each
    other.

    Args:
        url: https address, or http on this machine; the last component of its path becomes the file name.
        num_bytes: Expected size; None uses the size announced by the server, also for a cached file.
        sha256, sha384: First digits of the expected digest, or all of them; also checked for a cached file.
        folder: Folder to use instead of `cache_dir()`.
        progress: Whether to show a progress line on stderr; None shows it if stderr is a terminal.

    Raises:
        ValueError: If the address is not allowed, the connection fails, the file does not exist, has another size or
            content than expected or keeps changing, or it cannot be written. Correct partial data is kept, and the next
            call resumes.
    """
    folder = cache_dir() if folder is None else Path(folder)
    path = folder / _name_of(url)
    if not is_safe(url):
        raise ValueError(f"{readable(url)} is not allowed: give an address that starts with https://")
    digests = {"sha256": sha256, "sha384": sha384}
    wanted = _Wanted(url, num_bytes, {name: digest.lower() for name, digest in digests.items() if digest})
    if _is_whole(path, wanted):
        return path
    show = sys.stderr.isatty() if progress is None else progress
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_name(f"{path.name}.part")) as part:
            if not _is_whole(path, wanted):  # another process may have been faster
                _complete(wanted, path, _Part(part, url), show)
    except OSError as error:
        raise ValueError(f"cannot write {path} ({error.strerror or error}): free space, or set T2T_CACHE") from error
    return path


def _name_of(url: str) -> str:
    """Return the last component of the path of `url`.

    Raises:
        ValueError: If it is empty, or not a plain file name.
    """
    name = unquote(urlsplit(url).path.rpartition("/")[2])
    if (
        not (url.isascii() and url.isprintable())
        or name in ("", ".", "..")
        or not name.isprintable()
        or set(name) & set("/\\")
    ):
        raise ValueError(f"{readable(url)} does not end with the name of a file: give the address of one, in ASCII")
    return name


def _is_whole(path: Path, wanted: _Wanted) -> bool:
    if not path.is_file():
        return False
    size = path.stat().st_size
    if wanted.num_bytes not in (None, size):
        return False
    try:
        noted = bool(json.loads(_noted(path).read_text()) == {"url": wanted.url, "num_bytes": size})
    except (OSError, ValueError, RecursionError):  # missing or damaged
        noted = False
    if not wanted.digests:
        return noted or wanted.num_bytes is not None
    if wrong := wanted.wrong_digest(path):
        if noted:  # it was correct when downloaded
            print(f"{path} is damaged ({wrong}): it is downloaded again", file=sys.stderr)
        return False
    if not noted:  # it was placed here by other means
        with contextlib.suppress(OSError):
            _note(path, wanted.url, size)
    return True


def _noted(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _note(path: Path, url: str, num_bytes: int) -> None:
    """Record beside `path` the values that `_is_whole` checks."""
    _noted(path).write_text(json.dumps({"url": url, "num_bytes": num_bytes}))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[IO[bytes]]:
    """Open `path` for appending once no other process holds it; the lock of a process that dies is released."""
    while True:
        with path.open("ab") as file:
            _lock(file)
            if not (path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())):
                continue  # the process that held it renamed it to its final name
            try:
                yield file
            finally:
                with contextlib.suppress(OSError):
                    if path.stat().st_size == 0:
                        path.unlink()
            return


def _lock(file: IO[bytes]) -> None:
    with contextlib.suppress(ImportError):  # not available on Windows: there, only the size is checked
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)


def _complete(wanted: _Wanted, path: Path, part: _Part, show: bool) -> None:
    """Download the rest of `part`, verify it, and give it its final name."""
    attempt, reason = 0, ""
    while attempt < ATTEMPTS:
        before = part.size
        try:
            _fetch(wanted, part, show)
            break
        except _BrokenError as error:
            reason = str(error)
        attempt = 0 if part.size > before else attempt + 1
        time.sleep(PAUSE * 2 ** (attempt - 1) if attempt < ATTEMPTS else 0)
    else:
        then = "and load that file" if wanted.num_bytes is None and not wanted.digests else f"to {path}"
        raise ValueError(
            f"cannot download {wanted.url} ({readable(reason)}): {part.size:,} bytes have arrived, call again to "
            f"resume from there, or download it by other means {then}"
        )
    os.fsync(part.file.fileno())
    if wrong := wanted.wrong_digest(part.path):
        part.forget()
        raise ValueError(f"{wanted.url} sent another file than expected ({wrong}): try again")
    path.unlink(missing_ok=True)  # so that the recorded values never stand beside an older file
    _note(path, wanted.url, part.size)
    os.replace(part.path, path)
    part.version.unlink(missing_ok=True)


def _fetch(wanted: _Wanted, part: _Part, show: bool) -> None:
    """Download the rest of `part` over one connection.

    Raises:
        _BrokenError: If the connection ended early.
        ValueError: If the server refuses, or has a file of another size.
    """
    mark, announced = part.noted()
    expected = announced if wanted.num_bytes is None else wanted.num_bytes
    if part.size and (not mark or part.size > (MOST if expected is None else expected)):
        part.restart()  # its version is unknown or different
    with _ask(wanted.url, part, mark) as answer:
        total = _total(answer, part.size)
        if part.size and answer.status == 200:  # the server cannot resume, or has another version
            part.restart()
        elif part.size and (_version(answer) != mark or total is None or total != (expected or total)):
            part.restart()
            raise _BrokenError("the file has changed")
        if wanted.num_bytes is not None and total not in (None, wanted.num_bytes):
            part.forget()
            raise ValueError(
                f"{wanted.url} has {total:,} bytes instead of {wanted.num_bytes:,}: it is another file than published"
            )
        total = wanted.num_bytes if total is None else total
        if total is None and not answer.chunked:
            raise ValueError(
                f"{wanted.url}: the server does not announce the size, so a truncated file would not be detected"
            )
        _check_space(wanted, part, total)
        part.note(_version(answer), total)
        _append(wanted.url, part, answer, total, _Line(part.path.stem, total, show))
    if total is not None and part.size != total:
        raise _BrokenError(f"{part.size:,} of {total:,} bytes")


def _ask(url: str, part: _Part, mark: str) -> http.client.HTTPResponse:
    # Request uncompressed data: a compressed answer could not be resumed or counted.
    headers = {"User-Agent": "t2t-vit", "Accept-Encoding": "identity"}
    if part.size:
        headers |= {"Range": f"bytes={part.size}-", "If-Range": mark}
    try:
        answer = open_address(urllib.request.Request(url, headers=headers), TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # range not satisfiable: `part` is of another version, or longer than the file
            part.restart()
            raise _BrokenError("the file has changed") from error
        if error.code in (408, 429) or error.code >= 500:
            raise _BrokenError(f"HTTP {error.code}") from error
        raise ValueError(
            f"cannot download {url} (HTTP {error.code}, {readable(error.reason)}): is it still there?"
        ) from error
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        raise _BrokenError(readable(str(getattr(error, "reason", error))) or type(error).__name__) from error
    if answer.status not in (200, 206):
        answer.close()
        raise _BrokenError(f"HTTP {answer.status}")
    return answer


def _check_space(wanted: _Wanted, part: _Part, total: int | None) -> None:
    if wanted.num_bytes is None and total is not None and total > MOST:
        part.forget()
        raise ValueError(f"{wanted.url} announces {total:,} bytes, more than {MOST:,}: no such file is published")
    if total is not None and total - part.size > shutil.disk_usage(part.path.parent).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _append(url: str, part: _Part, answer: http.client.HTTPResponse, total: int | None, line: _Line) -> None:
    """Append received data to `part`, up to the known size."""
    have, limit = part.size, MOST if total is None else total
    try:
        for chunk in _chunks(answer):
            have += len(chunk)
            if have > limit:
                part.forget()
                raise ValueError(
                    f"{url} sends more than {limit:,} bytes: it is another file than published or announced"
                )
            part.file.write(chunk)
            line.count(have)
    finally:
        part.file.flush()  # also after an interruption: the next connection continues from here
    line.end()


def _version(answer: http.client.HTTPResponse) -> str:
    """Return the version mark if it identifies the exact bytes; a weak one (W/"...") does not."""
    mark = str(answer.headers.get("ETag") or "")
    return mark if re.fullmatch(r'"[!#-~]*"', mark) else ""


def _total(answer: http.client.HTTPResponse, have: int) -> int | None:
    """Return the size of the whole file as reported by the server.

    Raises:
        _BrokenError: If the answer starts at another byte than requested.
    """
    if answer.status == 206:
        found = re.fullmatch(
            r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18}|\*)", answer.headers.get("Content-Range", "")
        )
        if found is None or int(found[1]) != have:
            raise _BrokenError(f"asked from byte {have}, got {answer.headers.get('Content-Range')}")
        return None if found[2] == "*" else int(found[2])
    length = answer.headers.get("Content-Length", "")
    return int(length) if re.fullmatch("[0-9]{1,18}", length) else None


def _chunks(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    while True:
        try:
            chunk = answer.read(CHUNK)
        except http.client.IncompleteRead as error:
            if error.partial:
                yield error.partial
            raise _BrokenError("the connection ended") from error
        except (OSError, http.client.HTTPException) as error:
            raise _BrokenError(str(error) or type(error).__name__) from error
        if not chunk:
            return
        yield chunk


class _Line:
    """Progress line on stderr."""

    def __init__(self, name: str, total: int | None, show: bool) -> None:
        self.name, self.total, self.show, self.last = name, total, show, -1.0

    def count(self, have: int) -> None:
        now = time.monotonic()
        if self.show and (now - self.last > 0.1 or have == self.total):
            of = f" of {self.total / 1e6:.1f} MB, {100 * have / self.total:.0f} %" if self.total else " MB"
            sys.stderr.write(f"\r{self.name}: {have / 1e6:.1f}{of}")
            sys.stderr.flush()
            self.last = now

    def end(self) -> None:
        if self.show:
            sys.stderr.write("\n")
