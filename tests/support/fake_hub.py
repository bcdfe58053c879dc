"""A Hugging Face hub on loopback, as far as `huggingface_hub` asks it to create, commit and download models."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

COMMIT = "0" * 40


class FakeHub:
    """`repos`: id -> file -> bytes. `created`: id -> how it was asked for. `token`: the only one that may write.

    `commit` and `tag` are what it says of files: a commit, and an ETag in place of their own.
    """

    def __init__(self, token: str) -> None:
        self.token = token
        self.repos: dict[str, dict[str, bytes]] = {}
        self.created: dict[str, Any] = {}
        self.messages: list[str] = []
        self.blobs: dict[str, bytes] = {}
        self.address = ""
        self.commit, self.tag = COMMIT, ""


def _handler(hub: FakeHub) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, content: Any, status: int = 200, **headers: str) -> None:
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            for key, value in headers.items():
                self.send_header(key.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def missing(self, code: str) -> None:
            self.answer({"error": code}, 404, X_Error_Code=code, X_Error_Message=code, X_Repo_Commit=hub.commit)

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/[^/]+|/tree/.*)?", path):
                files = hub.repos.get(found[1])
                if files is None:
                    return self.missing("RepoNotFound")
                if (found[2] or "").startswith("/tree"):
                    sizes = {name: len(data) for name, data in files.items()}
                    return self.answer([{"type": "file", "path": n, "size": s, "oid": "1"} for n, s in sizes.items()])
                return self.answer({"id": found[1], "sha": hub.commit, "siblings": [{"rfilename": n} for n in files]})
            if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
                data = hub.repos.get(found[1], {}).get(found[2])
                if data is None:
                    return self.missing("EntryNotFound" if found[1] in hub.repos else "RepoNotFound")
                tag = hub.tag or hashlib.sha256(data).hexdigest()
                return self.answer(data, ETag=f'"{tag}"', X_Repo_Commit=hub.commit)
            return self.missing("Unknown")

        do_HEAD = do_GET  # noqa: N815

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self.answer({"error": "Invalid username or password."}, 401)
            if self.path == "/api/repos/create":
                asked = json.loads(body)
                repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
                hub.repos.setdefault(repo, {})
                hub.created.setdefault(repo, asked)
                return self.answer({"url": f"{hub.address}/{repo}", "id": repo, "name": repo})
            if re.search(r"/preupload/", self.path):
                asked = json.loads(body)["files"]
                return self.answer(
                    {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]}
                )
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/[^/?]+(\?.*)?", self.path):
                for line in body.decode().splitlines():
                    item = json.loads(line)
                    if item["key"] == "file":
                        hub.repos[found[1]][item["value"]["path"]] = base64.b64decode(item["value"]["content"])
                    elif item["key"] == "header":
                        hub.messages.append(item["value"]["summary"])
                url = f"{hub.address}/{found[1]}/commit/{COMMIT}"
                return self.answer({"commitUrl": url, "commitOid": COMMIT, "success": True})
            if self.path == "/api/validate-yaml":
                return self.answer({"warnings": [], "errors": []})
            return self.missing("Unknown")

        def log_message(self, *args: Any) -> None:
            pass

    return Handler


def ask(hub: FakeHub, code: str, home: Path) -> str:
    """Output of a process of its own (huggingface_hub reads the hub's address when imported) that runs `code`."""
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(home), "no_proxy": "127.0.0.1"}
    environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextlib.contextmanager
def fake_hub(token: str = "hf_test") -> Iterator[FakeHub]:
    hub = FakeHub(token)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub)) as listener:
        hub.address = f"http://127.0.0.1:{listener.server_address[1]}"
        thread = threading.Thread(target=listener.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            listener.shutdown()
            thread.join()
