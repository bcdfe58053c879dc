"""Allowed download addresses: https, and http on this machine only; redirects are held to the same rule."""

from __future__ import annotations

import http.client
import ipaddress
import urllib.request
from email.message import Message
from typing import IO, Any
from urllib.parse import urljoin, urlsplit

from t2t_config.text import readable


def is_safe(url: str, *, from_here: bool = True) -> bool:
    """Return whether `url` is allowed; `from_here`: whether this machine, or a server on it, refers to it."""
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and (
            parts.scheme == "https" or (from_here and parts.scheme == "http" and _is_loopback(parts.hostname))
        )
    except ValueError:
        return False


def _is_loopback(host: str | None) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def open_address(request: urllib.request.Request, timeout: float) -> http.client.HTTPResponse:
    """Return the response of a server; raises as `urllib.request.urlopen`, but does not accept `ftp:`, `file:`,
    `data:`.

    Raises:
        ValueError: If it redirects to an address that is not allowed; one line.
    """
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    answer: http.client.HTTPResponse = opener.open(request, timeout=timeout)
    return answer


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = 5

    def http_error_302(self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any) -> Any:
        target = urljoin(req.full_url, _location(headers))
        if not is_safe(target, from_here=is_safe(req.full_url) and not req.full_url.startswith("https:")):
            fp.close()
            raise ValueError(f"{readable(req.full_url, 200)} leads to {readable(target, 200)}: only https is followed")
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _location(headers: Message) -> str:
    return str(headers.get("location") or headers.get("uri") or "")
