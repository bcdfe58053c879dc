"""A web server on loopback that serves files and misbehaves as told."""

from __future__ import annotations

import contextlib
import http.server
import re
import socket
import socketserver
import threading
from collections.abc import Iterable, Iterator
from typing import Any


class Server:
    """Serves `files` (path -> bytes) with these faults.

    Attributes:
        breaks: how many bytes each coming answer sends before its connection breaks; answers after these are whole.
        ranges: whether it can resume.
        version: the ETag; None for none.
        lengths: whether it tells sizes.
        chunked: whether it sends the file in chunks of 1000 bytes, without its length.
        status: of each coming answer, in place of the file.
        requests: (path, Range header) of everything that was asked.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.breaks: list[int] = []
        self.ranges, self.lengths, self.chunked = True, True, False
        self.version: str | None = '"one"'
        self.status: list[int] = []
        self.requests: list[tuple[str, str | None]] = []
        self.address = ""


def _handler(server: Server) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            server.requests.append((self.path, asked))
            content = server.files.get(self.path)
            if server.status or content is None:
                self.send_error(server.status.pop(0) if server.status else 404)
                return
            start = 0
            same = self.headers.get("If-Range") in (None, server.version)
            if asked and server.ranges and same:
                start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])  # type: ignore[index]
                if start >= len(content):
                    self.send_error(416)
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            else:
                self.send_response(200)
            if server.chunked:
                self.send_header("Transfer-Encoding", "chunked")
            elif server.lengths:
                self.send_header("Content-Length", str(len(content) - start))
            if server.version is not None:
                self.send_header("ETag", server.version)
            self.end_headers()
            limit = server.breaks.pop(0) if server.breaks else len(content)
            sent = content[start : start + limit]
            if server.chunked:
                parts = [sent[i : i + 1000] for i in range(0, len(sent), 1000)]
                parts += [b""] if start + limit >= len(content) else []  # the end
                sent = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
            self.wfile.write(sent)
            self.wfile.flush()
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

        def log_message(self, *args: Any) -> None:
            pass

    return Handler


@contextlib.contextmanager
def serve() -> Iterator[Server]:
    server = Server()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(server)) as listener:
        server.address = f"http://127.0.0.1:{listener.server_address[1]}"
        thread = threading.Thread(target=listener.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            listener.shutdown()
            thread.join()


class _Scripted(socketserver.ThreadingTCPServer):
    """Gives each connection the next of `answers`, the last of them to all others; `asked` has what they asked."""

    daemon_threads = True

    def __init__(self, answers: list[Iterable[bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.answers, self.asked = answers, list[str]()
        self.address = f"http://127.0.0.1:{self.server_address[1]}"


class _Answer(socketserver.StreamRequestHandler):
    server: _Scripted

    def handle(self) -> None:
        asked = b""
        while not asked.endswith(b"\r\n\r\n") and (line := self.rfile.readline()):
            asked += line
        self.server.asked.append(asked.decode())
        answer = self.server.answers.pop(0) if len(self.server.answers) > 1 else self.server.answers[0]
        with contextlib.suppress(OSError):
            for part in answer:
                self.wfile.write(part)


@contextlib.contextmanager
def scripted(*answers: Iterable[bytes]) -> Iterator[_Scripted]:
    with _Scripted(list(answers)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
