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

from t2t_config import download
from t2t_config.download import cache_dir, cached_download
from tests.config.server import Server, serve

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
    with pytest.raises(ValueError, match=r"has 700,001 bytes in place of 700,000"):
        get(server, tmp_path, num_bytes=700_000)
    assert names(tmp_path) == set()


def test_another_content_than_published_is_refused(server: Server, tmp_path: Path):
    with pytest.raises(ValueError, match="SHA-256 does not begin with 00000000"):
        get(server, tmp_path, sha256="00000000")
    assert names(tmp_path) == set()


def test_a_server_that_tells_no_size_is_trusted_only_where_the_size_is_known(server: Server, tmp_path: Path):
    server.lengths = False
    with pytest.raises(ValueError, match="does not tell the file's size"):
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
    with pytest.raises(ValueError, match="does not tell the file's size"):
        get(server, tmp_path)
