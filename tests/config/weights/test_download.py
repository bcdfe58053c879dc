"""Downloads from a server that breaks off, lies or changes: the file is there whole and right, or not at all."""

from __future__ import annotations

import hashlib
import http.client
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from t2t_config.weights import download
from t2t_config.weights.download import cache_dir, cached_download
from tests.support.server import Server, scripted, serve

CONTENT = os.urandom(700_001)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "PAUSE", 0.001)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serve() as server:
        server.files["/a/file.pth"] = CONTENT
        yield server


def get(server: Server, folder: Path, **expected: object) -> Path:
    return cached_download(f"{server.address}/a/file.pth", folder=folder, progress=False, **expected)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_is_downloaded_once(server: Server, tmp_path: Path):
    path = get(server, tmp_path / "new", num_bytes=len(CONTENT), sha256=SHA256[:8])
    assert path == tmp_path / "new" / "file.pth"
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == {"file.pth", "file.pth.json"}
    assert get(server, tmp_path / "new") == path
    assert server.requests == [("/a/file.pth", None)]


@pytest.mark.parametrize("known", [{}, {"num_bytes": len(CONTENT)}, {"sha256": SHA256[:8]}])
def test_a_cached_file_that_is_not_whole_or_another_is_replaced(server: Server, tmp_path: Path, known: dict[str, Any]):
    (tmp_path / "file.pth").write_bytes(b"of another origin")
    assert get(server, tmp_path, **known).read_bytes() == CONTENT
    (tmp_path / "file.pth").write_bytes(CONTENT[:-1])
    assert get(server, tmp_path, **known).read_bytes() == CONTENT


def test_a_cached_file_of_another_address_is_replaced(server: Server, tmp_path: Path):
    server.files["/b/file.pth"] = CONTENT[::-1]
    get(server, tmp_path)
    path = cached_download(f"{server.address}/b/file.pth", folder=tmp_path, progress=False)
    assert path.read_bytes() == CONTENT[::-1]


def test_a_cached_file_is_kept_where_the_download_of_its_successor_fails(server: Server, tmp_path: Path):
    (tmp_path / "file.pth").write_bytes(b"old")
    server.breaks = [0] * download.ATTEMPTS
    with pytest.raises(ValueError, match="cannot download"):
        get(server, tmp_path)
    assert (tmp_path / "file.pth").read_bytes() == b"old"


def test_a_file_of_known_content_may_come_by_other_means(server: Server, tmp_path: Path):
    (tmp_path / "file.pth").write_bytes(CONTENT)
    for _ in range(2):
        assert get(server, tmp_path, sha256=SHA256[:8]).read_bytes() == CONTENT
    assert server.requests == []
    assert names(tmp_path) == {"file.pth", "file.pth.json"}


@pytest.mark.parametrize("sent", [1000, 263_000])
def test_chunks_that_break_off_are_in_the_file_once(server: Server, tmp_path: Path, sent: int):
    server.chunked, server.breaks = True, [sent]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert [asked for _, asked in server.requests] == [None, f"bytes={sent}-"]


def test_a_broken_connection_is_resumed_where_it_ended(server: Server, tmp_path: Path):
    server.breaks = [300_000, 1, 100_000]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert [asked for _, asked in server.requests] == [None, "bytes=300000-", "bytes=300001-", "bytes=400001-"]


def test_many_breaks_do_not_matter_while_bytes_arrive(server: Server, tmp_path: Path):
    server.breaks = [50_000] * 13
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_the_next_call_goes_on_where_the_last_one_gave_up(server: Server, tmp_path: Path):
    server.breaks = [300_000] + [0] * download.ATTEMPTS
    with pytest.raises(ValueError, match=r"300,000 of 700,001 bytes.*300,000 bytes have arrived"):
        get(server, tmp_path)
    assert names(tmp_path) == {"file.pth.part", "file.pth.part.version"}
    server.requests.clear()
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.requests == [("/a/file.pth", "bytes=300000-")]
    assert names(tmp_path) == {"file.pth", "file.pth.json"}


def test_a_server_without_ranges_sends_everything_again(server: Server, tmp_path: Path):
    server.ranges, server.breaks = False, [300_000]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert len(server.requests) == 2


def test_parts_of_two_versions_are_not_put_together(server: Server, tmp_path: Path):
    server.breaks = [300_000] + [0] * download.ATTEMPTS
    with pytest.raises(ValueError, match="300,000 bytes have arrived"):
        get(server, tmp_path)
    server.version, server.files["/a/file.pth"] = '"two"', CONTENT[::-1]
    assert get(server, tmp_path).read_bytes() == CONTENT[::-1]


def test_a_part_of_which_nobody_knows_the_version_is_not_used(server: Server, tmp_path: Path):
    server.version = None
    (tmp_path / "file.pth.part").write_bytes(b"x" * 1000)
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.requests == [("/a/file.pth", None)]


def test_a_part_longer_than_the_file_is_dropped(server: Server, tmp_path: Path):
    (tmp_path / "file.pth.part").write_bytes(b"x" * (len(CONTENT) + 5))
    (tmp_path / "file.pth.part.version").write_text('"one"')
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_another_size_than_published_is_refused_before_the_download(server: Server, tmp_path: Path):
    with pytest.raises(ValueError, match=r"has 700,001 bytes instead of 700,000"):
        get(server, tmp_path, num_bytes=700_000)
    assert names(tmp_path) == set()


def test_another_content_than_published_is_refused(server: Server, tmp_path: Path):
    with pytest.raises(ValueError, match="SHA-256 does not begin with 00000000"):
        get(server, tmp_path, sha256="00000000")
    assert names(tmp_path) == set()


def test_a_server_that_tells_no_size_is_trusted_only_where_the_size_is_known(server: Server, tmp_path: Path):
    server.lengths = False
    with pytest.raises(ValueError, match="does not announce the size"):
        get(server, tmp_path)
    server.breaks = [300_000]
    assert get(server, tmp_path, num_bytes=len(CONTENT)).read_bytes() == CONTENT


def test_a_missing_file_is_an_error_at_once(server: Server, tmp_path: Path):
    server.files.clear()
    with pytest.raises(ValueError, match=r"/a/file\.pth \(HTTP 404"):
        get(server, tmp_path)
    assert len(server.requests) == 1
    assert names(tmp_path) == set()


def test_a_server_in_trouble_is_asked_again(server: Server, tmp_path: Path):
    server.status = [503, 500, 429]
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_no_server_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(download, "PAUSE", 0.001)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serve() as server:
        address = server.address
    with pytest.raises(ValueError, match=r"cannot download .*file\.pth \(.*refused.*by other means to .*file\.pth"):
        cached_download(f"{address}/file.pth", folder=tmp_path, progress=False, sha256=SHA256)
    with pytest.raises(ValueError, match="by other means and load that file"):
        cached_download(f"{address}/file.pth", folder=tmp_path, progress=False)
    assert names(tmp_path) == set()


def test_a_folder_that_cannot_be_written(server: Server, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="set T2T_CACHE"):
        get(server, tmp_path / "file" / "below")


def test_processes_that_want_one_file_take_turns(server: Server, tmp_path: Path):
    code = "import sys; from t2t_config import cached_download; cached_download(sys.argv[1], folder=sys.argv[2])"
    command = [sys.executable, "-c", code, f"{server.address}/a/file.pth", str(tmp_path)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(4)]
    assert [process.communicate()[1] for process in running] == [b""] * 4
    assert (tmp_path / "file.pth").read_bytes() == CONTENT
    assert names(tmp_path) == {"file.pth", "file.pth.json"}
    assert len(server.requests) == 1


def test_progress_is_one_line_that_ends_at_the_whole(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    cached_download(f"{server.address}/a/file.pth", folder=tmp_path, progress=True)
    error = capsys.readouterr().err
    assert error.endswith("file.pth: 0.7 of 0.7 MB, 100 %\n")
    assert error.count("\n") == 1


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("T2T_CACHE", raising=False)
    assert cache_dir() == tmp_path / "xdg" / "t2t-vit"
    monkeypatch.setenv("T2T_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"
    monkeypatch.delenv("T2T_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "t2t-vit"


@pytest.mark.parametrize("name", ["..%2Fx", "%2Ftmp%2Fx", "..", ".", "", "a%0Ab", "a\rb", "a%5Cb", "%00", "\u00e9"])
def test_an_address_that_does_not_end_with_a_name(tmp_path: Path, name: str):
    """It may not choose where the file goes: `%2F` is a slash too."""
    with pytest.raises(ValueError, match="does not end with the name of a file"):
        cached_download(f"http://127.0.0.1:9/a/{name}", folder=tmp_path / "cache", progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mark", [b"\xff\xfe", b'"one"\r\nX: y'])
def test_a_damaged_mark_of_the_version_is_none(server: Server, tmp_path: Path, mark: bytes):
    (tmp_path / "file.pth.part").write_bytes(CONTENT[:100])
    (tmp_path / "file.pth.part.version").write_bytes(mark)
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.requests == [("/a/file.pth", None)]


def test_a_length_that_is_no_number(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        http.client.HTTPMessage, "get", lambda self, name, other="": "7x" if name == "Content-Length" else other
    )
    with pytest.raises(ValueError, match="does not announce the size"):
        get(server, tmp_path)


# ---- servers that want to fill the disk, never to end, or to lead elsewhere ----


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PAUSE", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def fetch(server: Any, folder: Path, **expected: Any) -> Path:
    return cached_download(f"{server.address}/file.pth", folder=folder, progress=False, **expected)


def ok(content: bytes, *headers: str, status: str = "200 OK") -> tuple[bytes, ...]:
    return ("\r\n".join((f"HTTP/1.1 {status}", *headers, "", "")).encode(), content)


def endless(*headers: str) -> Iterator[bytes]:
    yield from ok(b"", *headers, "Transfer-Encoding: chunked")
    while True:
        yield b"10000\r\n" + bytes(65536) + b"\r\n"


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("known", [True, False])
def test_an_answer_without_end_stops_at_the_size_that_is_known(
    tmp_path: Path, known: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(download, "MOST", 1_000_000)
    with (
        scripted(endless()) as server,
        pytest.raises(ValueError, match=r"sends more than 1,000,000 bytes: it is another file"),
    ):
        fetch(server, tmp_path, num_bytes=1_000_000 if known else None)
    assert names(tmp_path) == set()


@pytest.mark.usefixtures("at_once")
def test_a_size_beyond_all_that_is_published_or_that_the_disk_has(tmp_path: Path):
    huge = ok(b"x", f"Content-Length: {10**17}", 'ETag: "a"')
    with scripted(huge) as server:
        with pytest.raises(ValueError, match=r"announces 100,000,000,000,000,000 bytes, more than"):
            fetch(server, tmp_path)
        with pytest.raises(ValueError, match=r"cannot write .* \(No space left on device\): free space"):
            fetch(server, tmp_path, num_bytes=10**17)
    assert len(server.asked) == 2
    assert names(tmp_path) == set()


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("how", ["whole again", "cannot go on", "other size", "no mark"])
def test_a_file_that_changes_again_and_again_ends(tmp_path: Path, how: str):
    """Each answer brings a little more than the one before, so that something seems to arrive."""
    answers = []
    for i in range(100):
        mark = [] if how == "no mark" else [f'ETag: "{i if how == "whole again" else 0}"']
        answers.append(ok(b"x" * (10 + i), *mark, "Content-Length: 1000"))
        if how == "cannot go on":
            answers.append(ok(b"", status="416 Range Not Satisfiable"))
        if how == "other size":
            answers.append(ok(b"x" * 50, *mark, f"Content-Range: bytes {10 + i}-999/1001", status="206 Partial"))
    with scripted(*answers) as server, pytest.raises(ValueError, match="times it was interrupted and could not be"):
        fetch(server, tmp_path)
    assert len(server.asked) < 20


PART = b"a" * 300


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    ("noted", "headers"),
    {
        "no mark in the answer": (b'"one"\n700', ["Content-Range: bytes 300-699/700"]),
        "no mark in the answer, an earlier note": (b'"one"', ["Content-Range: bytes 300-699/700"]),
        "no size in the answer, an earlier note": (b'"one"', ["Content-Range: bytes 300-699/*", 'ETag: "one"']),
        "another mark": (b'"one"\n700', ["Content-Range: bytes 300-699/700", 'ETag: "two"']),
        "another size": (b'"one"\n700', ["Content-Range: bytes 300-698/699", 'ETag: "one"']),
        "no size in the answer": (b'"one"\n700', ["Content-Range: bytes 300-699/*", 'ETag: "one"']),
        "a weak mark": (b'W/"one"\n700', ["Content-Range: bytes 300-699/700", 'ETag: W/"one"']),
        "no mark of the part": (b"\n700", ["Content-Range: bytes 300-699/700", 'ETag: "one"']),
        "larger than the whole": (b'"one"\n200', ["Content-Range: bytes 300-699/700", 'ETag: "one"']),
    }.values(),
    ids=str,
)
def test_a_part_without_its_mark_and_size_is_thrown_away(tmp_path: Path, noted: bytes, headers: list[str]):
    (tmp_path / "file.pth.part").write_bytes(PART)
    (tmp_path / "file.pth.part.version").write_bytes(noted)
    rest = ok(b"b" * 400, *headers, status="206 Partial Content")
    whole = ok(b"c" * 700, 'ETag: "one"', "Content-Length: 700")
    if noted not in (b'"one"', b'"one"\n700'):  # it is thrown away before anything is asked
        rest = whole
    with scripted(rest, whole) as server:
        assert fetch(server, tmp_path).read_bytes() == b"c" * 700


@pytest.mark.usefixtures("at_once")
def test_a_part_of_an_earlier_version_of_this_module_goes_on(tmp_path: Path):
    """Its note has the mark alone."""
    (tmp_path / "file.pth.part").write_bytes(PART)
    (tmp_path / "file.pth.part.version").write_bytes(b'"one"')
    rest = ok(b"b" * 400, "Content-Range: bytes 300-699/700", 'ETag: "one"', status="206 Partial Content")
    with scripted(rest) as server:
        assert fetch(server, tmp_path).read_bytes() == PART + b"b" * 400
    assert 'If-Range: "one"' in server.asked[0]


@pytest.mark.parametrize("url", ["http://example.org/w.pth", "ftp://127.0.0.1/w.pth", "file:///etc/hostname"])
def test_only_https_is_asked(tmp_path: Path, url: str):
    with pytest.raises(ValueError, match="give an address that starts with https://"):
        cached_download(url, folder=tmp_path / "new", progress=False)
    assert names(tmp_path) == set()


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/w.pth", "http://192.0.2.1/w.pth"])
def test_a_redirect_elsewhere_is_one_line(tmp_path: Path, target: str):
    with (
        scripted(ok(b"", f"Location: {target}", "Content-Length: 0", status="302 Found")) as server,
        pytest.raises(ValueError, match=rf"^http://.*file.pth leads to {target}: only https is followed$"),
    ):
        fetch(server, tmp_path)
    assert len(server.asked) == 1
    assert names(tmp_path) == set()


@pytest.mark.parametrize("algorithm", ["sha256", "sha384"])
def test_a_file_in_the_cache_is_held_to_its_digest_each_time(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], algorithm: str
):
    expected = {algorithm: hashlib.new(algorithm, CONTENT).hexdigest(), "num_bytes": len(CONTENT)}
    path = get(server, tmp_path, **expected)
    path.write_bytes(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
    assert get(server, tmp_path, **expected).read_bytes() == CONTENT
    assert "file.pth is damaged (its SHA-" in capsys.readouterr().err
    assert len(server.requests) == 2
    with pytest.raises(ValueError, match="SHA-384 does not begin with 0123456789abcdef"):
        get(server, tmp_path, sha384="0123456789abcdef" * 6)
    assert path.read_bytes() == CONTENT
