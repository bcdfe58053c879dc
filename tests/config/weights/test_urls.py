"""Which addresses are asked, and where a server may lead."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import pytest

from t2t_config.weights.urls import is_safe, open_address
from tests.support.server import scripted


@pytest.mark.parametrize(
    "url",
    ["https://example.org/w.pth", "http://127.0.0.1:80/w", "http://localhost/w", "http://[::1]:8/w", "HTTPS://a/b"],
)
def test_https_and_what_is_on_this_machine(url: str):
    assert is_safe(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/w.pth",
        "http://127.0.0.1@example.org/w",
        "http://localhost.example.org/w",
        "http://127.0.0.1.example.org/w",
        "http://10.0.0.1/w",
        "ftp://127.0.0.1/w",
        "file:///etc/passwd",
        "data:,w",
        "https:///w",
        "//127.0.0.1/w",
        "/w",
        "http://[::1/w",
        "",
    ],
)
def test_others_are_not_asked(url: str):
    assert not is_safe(url)


def answer_of(url: str) -> bytes:
    with open_address(urllib.request.Request(url), 5.0) as answer:
        return answer.read()


FOUND = (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfound",)


def leading_to(target: str, code: int = 302) -> tuple[bytes, ...]:
    return (f"HTTP/1.1 {code} Found\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode(),)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_on_this_machine_is_followed(code: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with scripted(leading_to("/other", code), FOUND) as server:
        assert answer_of(f"{server.address}/file") == b"found"
        assert server.asked[1].startswith("GET /other ")


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("scheme", ["http://192.0.2.1/w", "ftp://127.0.0.1/w", "file:///etc/hostname", "data:,w"])
def test_a_redirect_to_anything_else_is_refused(
    code: int, scheme: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with scripted(leading_to(scheme, code)) as server, pytest.raises(ValueError, match="only https is followed"):
        answer_of(f"{server.address}/file")


def test_redirects_without_end(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with scripted(leading_to("/file")) as server, pytest.raises(OSError, match="redirect"):
        answer_of(f"{server.address}/file")
    assert len(server.asked) < 20


def test_the_outside_does_not_lead_to_this_machine():
    """Where a server behind a firewall trusts whoever is on it."""
    assert is_safe("http://127.0.0.1/admin")
    assert not is_safe("http://127.0.0.1/admin", from_here=False)
