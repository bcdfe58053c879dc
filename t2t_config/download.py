"""Files from the web into a cache: resumed where they broke off, checked, and there whole or not at all.

Standard library only. A file grows as NAME.part beside its final name, with the server's mark of its version (ETag or
Last-Modified) in NAME.part.version, so that the parts of two versions are never put together. NAME.json keeps the
address and the size of a file that is whole, so that a cut one, or another of that name, is not taken for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

from t2t_config.load_report import readable

TIMEOUT = 30.0
"""Seconds without an answer or a byte before a connection counts as broken."""
ATTEMPTS = 5
"""Connections in a row that may bring nothing new."""
PAUSE = 1.0
"""Seconds before the second of them; doubled each time."""
CHUNK = 1 << 18


class _BrokenError(Exception):
    """The connection failed; another may go on where it ended."""


def cache_dir() -> Path:
    """The folder of downloaded files: $T2T_CACHE, else $XDG_CACHE_HOME/t2t-vit, else ~/.cache/t2t-vit."""
    if own := os.environ.get("T2T_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "t2t-vit"


def cached_download(
    url: str,
    *,
    num_bytes: int | None = None,
    sha256: str | None = None,
    folder: str | Path | None = None,
    progress: bool | None = None,
) -> Path:
    """The file at `url` in the cache; downloaded first unless it is there. Processes that want it at once take turns.

    Args:
        url: http or https; the last part of its path becomes the file's name.
        num_bytes: size the file has to have; None holds to what the server announced, in the cache too.
        sha256: the first digits of its SHA-256, or all of them.
        folder: in place of `cache_dir()`.
        progress: a line on stderr that counts; None: if stderr is a terminal.

    Raises:
        ValueError: no connection, no such file, another size or another content than expected, or no place to write.
            What has arrived is kept, and the next call goes on from there, unless it is wrong.
    """
    folder = cache_dir() if folder is None else Path(folder)
    path = folder / _name_of(url)
    if _is_whole(path, url, num_bytes):
        return path
    show = sys.stderr.isatty() if progress is None else progress
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_name(f"{path.name}.part")) as part:
            if _is_whole(path, url, num_bytes):  # another process was faster
                pass
            elif num_bytes is None and sha256 is not None and path.is_file() and _sha256(path).startswith(sha256):
                _note(path, url, path.stat().st_size)  # it came here by other means
            else:
                _complete(url, path, part, num_bytes, sha256, show)
    except OSError as error:
        raise ValueError(f"cannot write {path} ({error.strerror or error}): free space, or set T2T_CACHE") from error
    return path


def _name_of(url: str) -> str:
    """The last part of the path of `url`.

    Raises:
        ValueError: it is no name of a file: none, or one that leads elsewhere.
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


def _is_whole(path: Path, url: str, num_bytes: int | None) -> bool:
    if not path.is_file():
        return False
    size = path.stat().st_size
    if num_bytes is not None:
        return size == num_bytes
    try:
        return bool(json.loads(_noted(path).read_text()) == {"url": url, "num_bytes": size})
    except (OSError, ValueError, RecursionError):  # none, or a damaged one
        return False


def _noted(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _note(path: Path, url: str, num_bytes: int) -> None:
    """Notes beside `path` what `_is_whole` will hold it to."""
    _noted(path).write_text(json.dumps({"url": url, "num_bytes": num_bytes}))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[IO[bytes]]:
    """`path`, open to append; waits until no other process has it. A process that dies gives it free."""
    while True:
        with path.open("ab") as file:
            _lock(file)
            if not (path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())):
                continue  # the process that had it gave it its final name
            try:
                yield file
            finally:
                with contextlib.suppress(OSError):
                    if path.stat().st_size == 0:
                        path.unlink()
            return


def _lock(file: IO[bytes]) -> None:
    with contextlib.suppress(ImportError):  # Windows has none: there, the size check is all
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)


def _complete(url: str, path: Path, part: IO[bytes], num_bytes: int | None, sha256: str | None, show: bool) -> None:
    """Downloads what is missing of `part`, checks it, and gives it its final name."""
    version = Path(f"{part.name}.version")
    attempt, reason = 0, ""
    while attempt < ATTEMPTS:
        before = os.fstat(part.fileno()).st_size
        try:
            _fetch(url, part, version, num_bytes, show)
            break
        except _BrokenError as error:
            reason = str(error)
        attempt = 0 if os.fstat(part.fileno()).st_size > before else attempt + 1
        time.sleep(PAUSE * 2 ** (attempt - 1) if attempt < ATTEMPTS else 0)
    else:
        have = os.fstat(part.fileno()).st_size
        then = "and load that file" if num_bytes is None and sha256 is None else f"to {path}"
        raise ValueError(
            f"cannot download {url} ({readable(reason)}): {have:,} bytes have arrived, call again to go on from there, "
            f"or download it by other means {then}"
        )
    os.fsync(part.fileno())
    if sha256 is not None and not _sha256(Path(part.name)).startswith(sha256):
        _forget(part, version)
        raise ValueError(f"{url} gave another file than expected (its SHA-256 does not begin with {sha256}): try again")
    path.unlink(missing_ok=True)  # so that what is noted never stands beside an older file
    _note(path, url, os.fstat(part.fileno()).st_size)
    os.replace(part.name, path)
    version.unlink(missing_ok=True)


def _fetch(url: str, part: IO[bytes], version: Path, num_bytes: int | None, show: bool) -> None:
    """One connection: everything that `part` lacks.

    Raises:
        _BrokenError: it ended too early.
        ValueError: the server refuses, or has a file of another size.
    """
    have = os.fstat(part.fileno()).st_size
    mark = version.read_text(encoding="utf-8", errors="replace") if version.is_file() else ""
    if not (mark.isascii() and mark.isprintable()):
        mark = ""
    if have and not mark:  # of which version, nobody knows
        part.truncate(have := 0)
    # The bytes as they are: a compressed answer could not be resumed or counted.
    headers = {"User-Agent": "t2t-vit", "Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": mark}
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # nothing of that range: `part` is of another version, or longer than the file
            _forget(part, version)
            raise _BrokenError("the file has changed") from error
        if error.code in (408, 429) or error.code >= 500:
            raise _BrokenError(f"HTTP {error.code}") from error
        raise ValueError(
            f"cannot download {url} (HTTP {error.code}, {readable(error.reason)}): is it still there?"
        ) from error
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        raise _BrokenError(readable(str(getattr(error, "reason", error))) or type(error).__name__) from error
    with answer:
        if answer.status != 206 and have:  # the server cannot resume, or has another version
            part.truncate(have := 0)
        total = _total(answer, have)
        if num_bytes is not None and total not in (None, num_bytes):
            _forget(part, version)
            raise ValueError(f"{url} has {total:,} bytes in place of {num_bytes:,}: it is another file than published")
        total = num_bytes if total is None else total
        if total is None and not answer.chunked:
            raise ValueError(f"{url}: the server does not tell the file's size, so that a broken one would not show")
        if have and _version(answer) not in ("", mark):
            _forget(part, version)
            raise _BrokenError("the file has changed")
        version.write_text(_version(answer), encoding="utf-8")
        line = _Line(Path(part.name).stem, total, show)
        try:
            for chunk in _chunks(answer):
                part.write(chunk)
                have += len(chunk)
                line.count(have)
        finally:
            part.flush()  # also of what arrived before a break: the next connection goes on after it
        line.end()
    have = os.fstat(part.fileno()).st_size
    if total is not None and have != total:
        if have > total:
            _forget(part, version)
        raise _BrokenError(f"{have:,} of {total:,} bytes")


def _version(answer: http.client.HTTPResponse) -> str:
    return answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""


def _total(answer: http.client.HTTPResponse, have: int) -> int | None:
    """Size of the whole file as the server tells it.

    Raises:
        _BrokenError: it goes on at another byte than asked for.
    """
    if answer.status == 206:
        found = re.fullmatch(
            r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18}|\*)", answer.headers.get("Content-Range", "")
        )
        if found is None or int(found[1]) != have:
            raise _BrokenError(f"asked from byte {have}, got {answer.headers.get('Content-Range')}")
        if found[2] != "*":
            return int(found[2])
    length = answer.headers.get("Content-Length", "")
    return have + int(length) if re.fullmatch("[0-9]{1,18}", length) else None


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


def _forget(part: IO[bytes], version: Path) -> None:
    part.truncate(0)
    version.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Line:
    """The line on stderr: how much of the file is there."""

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
